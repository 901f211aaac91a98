"""From trained weights to a bundle: every form agrees, figures are those of the file, and nothing half-done is left."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export import onnx as onnx_form
from export import strangeness
from export import torchscript as torchscript_form
from export.__main__ import main
from export.graph import Answering, CalibratedGraph
from export.parity import ParityError, reference, verify
from export.strangeness import Seen
from models import MODELS, weights_path
from models.datasets import DATASETS, normalise
from models.evaluate import features_and_logits
from models.networks import load_network
from service import bundle
from service.backends import onnx as onnx_backend
from service.backends import torchscript as torchscript_backend
from service.backends.agreement import disagreement
from service.backends.initializers import initializers
from service.calibration import energy, expected_calibration_error, softmax
from service.calibrators import METHODS
from service.documents import OodMethod
from service.errors import BundleError
from service.images import Pixels
from service.settings import BUNDLES
from tests.conftest import ROOT, data_dir
from tests.test_bundle import edit_calibration, edit_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
FORMS = {"onnx": (onnx_form, onnx_backend), "torchscript": (torchscript_form, torchscript_backend)}
TEMPERATURE, SET_THRESHOLD, OOD_THRESHOLD = 1.5, 0.2, -2.0
ANSWERING = Answering("map_temperature", {"temperature": TEMPERATURE}, SET_THRESHOLD, "energy", OOD_THRESHOLD)
PARAMS: dict[str, dict[str, Any]] = {
    "identity": {},
    "map_temperature": {"temperature": 1.5},
    "beta_pooled": {"temperature": 1.3, "a": 1.2, "b": 1.4, "c": 0.9},
    "isotonic_pooled": {"temperature": 0.7, "knots": [0.0, 0.01, 0.5, 1.0], "values": [0.0, 0.1, 0.4, 0.97]},
    "vector": {"weights": np.linspace(0.5, 1.5, 10).tolist(), "biases": np.linspace(-1, 1, 10).tolist()},
}


def trained_graph(name: str = "lenet5", answering: Answering = ANSWERING) -> CalibratedGraph:
    net = load_network(MODELS[name].build(), weights_path(name))
    return CalibratedGraph(net, DATASETS[MODELS[name].dataset].input, answering).eval()


def random_pixels(n: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)


def write(form: str, graph: CalibratedGraph, directory: Path) -> None:
    writer, backend = FORMS[form]
    writer.write(graph, DATASETS["mnist"].input, directory / backend.FILE)


def test_the_graph_answers_what_its_parameters_say() -> None:
    """Normalisation, temperature, prediction set, energy and flag are those of the plain formulas."""
    graph, pixels = trained_graph(), random_pixels(20)
    outputs = reference(graph, pixels)
    spec = DATASETS["mnist"].input
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    images = (pixels.transpose(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        logits = graph.net(torch.from_numpy(images.astype(np.float32))).numpy()
    np.testing.assert_allclose(outputs.logits, logits, atol=1e-4)
    probabilities = softmax(logits / TEMPERATURE)
    np.testing.assert_allclose(outputs.probabilities, probabilities, atol=1e-5)
    expected = (probabilities >= SET_THRESHOLD) | (probabilities == probabilities.max(1, keepdims=True))
    np.testing.assert_array_equal(outputs.prediction_set, expected)
    np.testing.assert_allclose(outputs.energy, energy(logits), atol=1e-4)
    np.testing.assert_array_equal(outputs.ood_score, outputs.energy)
    np.testing.assert_array_equal(outputs.is_ood, outputs.energy > OOD_THRESHOLD)


@pytest.mark.slow
@pytest.mark.parametrize("score", strangeness.SCORES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_in_every_form(method: str, score: OodMethod, tmp_path: Path) -> None:
    """numpy, torch, ONNX Runtime and TorchScript at batch 1 and 64; parameters keep their names in both files."""
    net, pixels = load_network(MODELS["lenet5"].build(), weights_path("lenet5")), random_pixels(64)
    features, logits = features_and_logits(net, normalise("mnist", random_pixels(200)), torch.device("cpu"))
    found = strangeness.FITS[score](net, Seen(features.numpy(), logits.numpy()))
    answering = Answering(method, PARAMS[method], SET_THRESHOLD, score, OOD_THRESHOLD, found)
    graph = trained_graph(answering=answering)
    expected = reference(graph, pixels)
    plain = METHODS[method](expected.logits.astype(np.float64), PARAMS[method])
    np.testing.assert_allclose(expected.probabilities, plain, rtol=0, atol=1e-6)
    for form, (_, backend) in FORMS.items():
        write(form, graph, tmp_path)
        loaded = backend.load(tmp_path, "cpu", 1)
        assert disagreement(loaded.forward(pixels), expected) is None
        assert disagreement(loaded.forward(pixels[:1]), next(iter(expected.split([1])))) is None
    kept = initializers((tmp_path / onnx_backend.FILE).read_bytes())
    named = dict(torch.jit.load(tmp_path / torchscript_backend.FILE).named_buffers())
    for name, value in answering.buffers().items():
        np.testing.assert_array_equal(kept[name].ravel(), np.ravel(value))
        np.testing.assert_array_equal(named[name].numpy(), value)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_an_exported_form_passes_the_parity_check(form: str, tmp_path: Path) -> None:
    """Batch 1 and 64 agree with the network, whatever the batch."""
    graph = trained_graph()
    write(form, graph, tmp_path)
    assert verify(graph, FORMS[form][1].load(tmp_path, "cpu", 1), random_pixels(130), form) <= 1e-4


@pytest.mark.slow
def test_a_form_that_answers_differently_is_refused(tmp_path: Path) -> None:
    """Parity compares with the network at hand: after a change of one weight it fails."""
    graph = trained_graph()
    write("onnx", graph, tmp_path)
    with torch.no_grad():
        next(graph.parameters())[0] += 0.01
    with pytest.raises(ParityError, match="logits differ"):
        verify(graph, onnx_backend.load(tmp_path, "cpu", 1), random_pixels(10), "onnx")


@pytest.mark.slow
def test_a_form_that_answers_with_nan_is_refused(tmp_path: Path) -> None:
    """A comparison with NaN must not pass for agreement."""
    graph = trained_graph()
    with torch.no_grad():
        next(graph.parameters())[0] = float("nan")
    write("onnx", graph, tmp_path)
    with pytest.raises(ParityError):
        verify(trained_graph(), onnx_backend.load(tmp_path, "cpu", 1), random_pixels(2), "onnx")


MODELS_SERVED = sorted(path.name for path in BUNDLES.iterdir())


@pytest.mark.parametrize("name", MODELS_SERVED)
def test_a_committed_graph_is_as_specified(name: str) -> None:
    """uint8 NHWC in, dynamic batch, opset 20 or newer, calibration as named initializers equal to the document."""
    found = bundle.discover(BUNDLES)[name]
    model = onnx.load(found.directory / onnx_backend.FILE)
    assert model.opset_import[0].version >= 20
    shape = model.graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in shape.shape.dim] == ["batch", 32, 32, 3]
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert found.calibration is not None
    for parameter, value in found.calibration.params.items():
        if parameter in values:
            np.testing.assert_array_equal(values[parameter], np.asarray(value, np.float32))
    assert values["prediction_set_threshold"] == np.float32(found.calibration.conformal[0].threshold)
    assert values["ood_threshold"] == np.float32(found.calibration.ood.threshold)


@pytest.mark.parametrize("name", MODELS_SERVED)
def test_committed_bundles_reproduce_their_test_vectors(name: str) -> None:
    """The probabilities of calibration.json follow from its logits by its parameters."""
    calibration = bundle.discover(BUNDLES)[name].calibration
    assert calibration is not None
    for vector in calibration.test_vectors:
        expected = METHODS[calibration.method](np.array([vector.logits]), calibration.params)[0]
        np.testing.assert_allclose(expected, vector.probabilities, atol=1e-5)
        assert abs(sum(vector.probabilities) - 1) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS_SERVED)
def test_both_committed_forms_agree_with_the_committed_weights(name: str) -> None:
    """TorchScript, ONNX Runtime and PyTorch give the same probabilities to 1e-5, at batch 1 and 64."""
    found = bundle.discover(BUNDLES)[name]
    net = load_network(MODELS[name].build(), weights_path(name))
    calibration = found.calibration
    assert calibration is not None
    kept = initializers((found.directory / onnx_backend.FILE).read_bytes())
    answering = Answering(
        calibration.method,
        calibration.params,
        calibration.conformal[0].threshold,
        calibration.ood.method,
        calibration.ood.threshold,
        {parameter: kept[parameter] for parameter in calibration.ood.parameters_sha256},
    )
    graph = CalibratedGraph(net, found.manifest.input, answering)
    for form, (_, backend) in FORMS.items():
        verify(graph.eval(), backend.load(found.directory, "cpu", 1), random_pixels(64), form)


@pytest.mark.parametrize("name", MODELS_SERVED)
def test_committed_files_name_no_path_of_the_machine_that_made_them(name: str) -> None:
    """Neither graph carries the exporter's traces of source files."""
    for path in bundle.discover(BUNDLES)[name].directory.iterdir():
        content = path.read_bytes()
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


def test_changing_an_initializer_changes_the_answer_and_is_refused(tmp_path: Path) -> None:
    """The temperature in the graph is the one that counts; a graph edited afterwards is not served, nor one whose
    digests were forged to go with it.
    """
    source = bundle.discover(BUNDLES)["cifar10"].directory
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = onnx.load(tmp_path / onnx_backend.FILE)
    initializer = next(i for i in model.graph.initializer if i.name == "temperature")
    initializer.CopyFrom(onnx.numpy_helper.from_array(np.array(9.0, np.float32), "temperature"))
    onnx.save(model, tmp_path / onnx_backend.FILE)
    pixels = random_pixels(4)
    before = onnx_backend.load(source, "cpu", 1).forward(pixels).probabilities
    after = onnx_backend.load(tmp_path, "cpu", 1).forward(pixels).probabilities
    assert np.abs(before - after).max() > 0.01
    with pytest.raises(BundleError, match=r"model\.onnx is not the file its manifest describes"):
        bundle.load(tmp_path)
    digest = bundle.digest(tmp_path / onnx_backend.FILE)
    edit_manifest(tmp_path, lambda manifest: manifest["files"].update({onnx_backend.FILE: digest}))
    edit_calibration(tmp_path, lambda document: document.update(model_sha256=digest))
    with pytest.raises(BundleError, match=r"the temperature in model\.onnx is another"):
        bundle.load(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_an_existing_version_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """Exporting the committed version again fails with one line and changes nothing."""
    assert main(["digits", "--version", bundle.discover(BUNDLES)["digits"].manifest.version]) == 1
    told = capsys.readouterr().err
    assert "exists; choose another --version" in told
    assert len(told.splitlines()) == 1


@pytest.mark.slow
def test_weights_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken file and the weights of another network are refused in one line."""
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "other.json").write_text("{}")
    torch.save(MODELS["cifar10"].build().state_dict(), tmp_path / "other.pt")
    for name in ("broken.pt", "other.pt"):
        assert main(["digits", "--bundles", str(tmp_path / "bundles"), "--weights", str(tmp_path / name)]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"export: {tmp_path / name}")
        assert len(told.splitlines()) == 1
    assert not (tmp_path / "bundles").exists()


@pytest.mark.slow
def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error says which file and which command makes it."""
    assert main(["digits", "--bundles", str(tmp_path), "--weights", str(tmp_path / "none.pt")]) == 1
    assert "python -m models.train" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(data_dir() is None, reason="needs the full MNIST data set in DATA_DIR")
def test_exporting_again_gives_the_committed_bundle(tmp_path: Path) -> None:
    """The committed bundle is what the committed command makes of the committed weights."""
    ended = run("digits", "--bundles", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    made, committed = bundle.load(tmp_path / "digits" / "1"), bundle.discover(BUNDLES)["digits"]
    assert made.calibration is not None
    assert committed.calibration is not None
    assert made.calibration.method == committed.calibration.method
    assert made.calibration.params == pytest.approx(committed.calibration.params, rel=1e-4)
    assert made.calibration.data == committed.calibration.data
    figures = committed.calibration.metrics.after
    assert made.calibration.metrics.after.accuracy == pytest.approx(figures.accuracy, abs=1e-4)
    assert made.manifest.labels == committed.manifest.labels
    assert not [path for path in (tmp_path / "digits").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.skipif(data_dir() is None, reason="needs the full data sets in DATA_DIR")
@pytest.mark.parametrize("name", ["digits"])
def test_a_committed_graph_scores_what_is_published(name: str) -> None:
    """Accuracy and ECE of the committed file over the whole test set are those of calibration.json and of the card.

    Of every model tests/test_promise.py asks the service itself.
    """
    from models.datasets import load, pixels

    found = bundle.discover(BUNDLES)[name]
    data = load(MODELS[name].dataset, data_dir())
    fed = pixels(MODELS[name].dataset, data.test_images)
    session = onnxruntime.InferenceSession(found.directory / onnx_backend.FILE, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"pixels": fed[i : i + 500]})[0] for i in range(0, len(fed), 500)]
    probabilities = np.concatenate(parts)
    correct = probabilities.argmax(1) == data.test_labels
    assert found.calibration is not None
    published = found.calibration.metrics.after
    assert correct.mean() == pytest.approx(published.accuracy, abs=2e-4)
    assert expected_calibration_error(probabilities.max(1), correct) == pytest.approx(published.ece_15, abs=1e-4)
    assert f"{published.accuracy:.2%}" in (found.directory / "MODEL_CARD.md").read_text()
    assert json.loads(weights_path(name).with_suffix(".json").read_text())["dataset"] == MODELS[name].dataset


def test_every_network_of_the_zoo_has_the_parameters_its_docstring_says() -> None:
    """Counts in the modules' docstrings are those of the networks."""
    written = [module.__doc__ or "" for name, module in sys.modules.items() if name.startswith("models.")]
    for recipe in MODELS.values():
        count = sum(p.numel() for p in recipe.build().parameters())
        assert any(f"\n{count:,} parameters" in text or f" {count:,} parameters" in text for text in written)
