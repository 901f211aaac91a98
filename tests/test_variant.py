"""export.variant: a variant is a bundle of its own, with its own calibration and figures, and served by a setting."""

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from export import gates, variant
from export.gates import ACCURACY_LOSS, GateError
from export.original import calibration_of
from export.variant import Wanted, make, side_by_side
from models import MODELS, weights_path
from models.datasets import load, pixels, splits
from models.formats import DataError
from service import bundle
from service.audit import GRAPH
from service.backends import onnx as onnx_backend
from service.bundle import Bundle
from service.settings import BUNDLES
from tests.conftest import committed, data_dir, fixtures, serving

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
needs_data = pytest.mark.skipif(data_dir() is None, reason="needs the full MNIST data set in DATA_DIR")


def copied(root: Path) -> Bundle:
    source = committed("digits")
    shutil.copytree(source, root / "digits" / source.name)
    return bundle.discover(root)["digits"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """A bundle, and its int8 variant as the command makes it."""
    if data_dir() is None:
        pytest.skip("needs the full MNIST data set in DATA_DIR")
    root = tmp_path_factory.mktemp("bundles")
    found = copied(root)
    assert variant.main(["int8", "digits", "--bundles", str(root)]) == 0
    return found, bundle.discover(root, precision="int8")["digits"]


Made = tuple[Bundle, Bundle]


@pytest.mark.slow
def test_it_is_a_bundle_of_its_own(made: Made) -> None:
    """Beside the other, of the same name and version, and its manifest names what it was made from."""
    found, variant = made
    name, version = found.manifest.name, found.manifest.version
    assert variant.directory == found.directory.parent.parent / f"{name}-int8" / version
    assert (variant.manifest.name, variant.manifest.version) == (name, version)
    assert variant.manifest.variant is not None
    assert (variant.manifest.precision, variant.manifest.variant.made_from) == ("int8", found.seal.pin)
    assert variant.manifest.labels == found.manifest.labels
    assert "model.torchscript.pt" not in variant.manifest.files
    assert f"int8, made from `{found.seal.pin}`" in (variant.directory / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_it_is_calibrated_anew(made: Made) -> None:
    """On its own logits: other thresholds, the same images, and every gate passed, that of variants too."""
    before, after = map(calibration_of, made)
    assert before.id != after.id
    assert all(one.threshold != other.threshold for one, other in zip(before.conformal, after.conformal, strict=True))
    assert before.data.keys() == after.data.keys()
    for name, split in before.data.items():
        assert after.data[name].index_sha256 == split.index_sha256
    (loss,) = [gate for gate in after.gates if gate.name == "accuracy_loss"]
    assert loss.bound == ACCURACY_LOSS
    assert loss.value == pytest.approx(before.metrics.after.accuracy - after.metrics.after.accuracy, abs=1e-9)
    assert all(gate.passed for gate in after.gates)


@pytest.mark.slow
def test_its_figures_are_those_of_its_file(made: Made) -> None:
    """Of the test set, as the service would run it; not those of what it was made from."""
    found, variant = made
    data = load("mnist")
    answers = onnx_backend.load(variant.directory, "cpu", 1, seal=variant.seal).forward(
        pixels("mnist", data.test_images[:2000])
    )
    told = np.array([vector.logits for vector in calibration_of(variant).test_vectors])
    places = np.linspace(0, len(data.test_images) - 1, len(told)).astype(int)
    inside = places < 2000
    np.testing.assert_allclose(answers.logits[places[inside]], told[inside], rtol=0, atol=1e-4)
    others = onnx_backend.load(found.directory, "cpu", 1).forward(pixels("mnist", data.test_images[:2000]))
    assert np.abs(others.logits - answers.logits).max() > 1e-3
    assert (others.logits.argmax(1) == answers.logits.argmax(1)).mean() > 0.99


@pytest.mark.slow
def test_as_many_ordinary_images_are_strange_to_it(made: Made) -> None:
    """The threshold is its own: one in a hundred held-out images is above."""
    ood = calibration_of(made[1]).ood
    assert ood.threshold != calibration_of(made[0]).ood.threshold
    images = pixels("mnist", load("mnist").train_images[splits("mnist").conformal])
    answers = onnx_backend.load(made[1].directory, "cpu", 1).forward(images)
    assert answers.is_ood.mean() == pytest.approx(1 - ood.id_tpr, abs=1e-3)


@pytest.mark.slow
def test_it_is_served_under_the_models_name(made: Made, tmp_path: Path) -> None:
    """With TRUEODDS_VARIANT=int8, and never by Winograd's convolutions; its calibration id is in each answer."""
    root = made[0].directory.parent.parent
    (picture, label), *_ = fixtures("digits")
    with serving(tmp_path, {"TRUEODDS_BUNDLES": str(root), "TRUEODDS_VARIANT": "int8"}) as server:
        described = httpx.get(f"{server.url}/v1/models/digits").json()
        answer = server.post("digits", picture).json()
    assert described["variant"] == {"precision": "int8", "made_from": made[0].seal.pin}
    assert described["sha256"] == answer["model"]["sha256"] == made[1].sha256
    assert answer["predictions"][0]["label"] == label
    assert answer["calibration"]["id"] == calibration_of(made[1]).id


@pytest.mark.slow
def test_a_version_stays_as_it_is(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """The same again is refused before anything is computed; by another version it may be made anew."""
    root = made[0].directory.parent.parent
    assert variant.main(["int8", "digits", "--bundles", str(root)]) == 1
    assert "exists; choose another --version" in capsys.readouterr().err


@pytest.mark.slow
@needs_data
def test_a_network_that_loses_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it is left."""
    found = copied(tmp_path)
    monkeypatch.setattr(gates, "ACCURACY_LOSS", -1.0)
    with pytest.raises(GateError, match="the accuracy went from 99"):
        make(found, weights_path("digits"), Wanted("int8", "9"))
    assert {path.name for path in tmp_path.iterdir()} == {"digits"}


@pytest.mark.slow
@needs_data
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """The answer would be another network's."""
    found = copied(tmp_path)
    torch.save(MODELS["digits"].build().state_dict(), tmp_path / "other.pt")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="weights are not those of"):
        make(found, tmp_path / "other.pt", Wanted("int8", "9"))
    assert not (tmp_path / "digits-int8").exists()


def test_side_by_side() -> None:
    """A line for each, with the figures of its bundle."""
    found = bundle.discover(BUNDLES)
    head, *lines = side_by_side(found).splitlines()
    assert head.split() == ["accuracy", "NLL", "ECE-15", "null", "p99", "bytes"]
    for line, (name, each) in zip(lines, found.items(), strict=True):
        title, accuracy, *_, size = line.split()
        assert (title, accuracy) == (name, f"{calibration_of(each).metrics.after.accuracy:.2%}")
        assert int(size.replace(",", "")) == (each.directory / GRAPH).stat().st_size
