"""From trained weights to a bundle: every form agrees, figures are those of the file, and nothing half-done is left."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import onnx as onnx_form
from export import torchscript as torchscript_form
from export.__main__ import load_network
from export.graph import CalibratedGraph
from export.parity import ParityError, reference, verify
from models import MODELS, weights_path
from models.datasets import DATASETS
from service import bundle
from service.backends import onnx as onnx_backend
from service.backends import torchscript as torchscript_backend
from service.calibration import energy, expected_calibration_error, softmax
from service.errors import BundleError
from service.images import Pixels
from service.settings import BUNDLES
from tests.conftest import ROOT, data_dir

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
FORMS = {"onnx": (onnx_form, onnx_backend), "torchscript": (torchscript_form, torchscript_backend)}
TEMPERATURE, SET_THRESHOLD, ENERGY_THRESHOLD = 1.5, 0.2, -2.0


def trained_graph(name: str = "digits") -> CalibratedGraph:
    net = load_network(MODELS[name].build(), weights_path(name))
    spec = DATASETS[MODELS[name].dataset].input
    return CalibratedGraph(net, spec, TEMPERATURE, SET_THRESHOLD, ENERGY_THRESHOLD).eval()


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
    np.testing.assert_array_equal(outputs.is_ood, outputs.energy > ENERGY_THRESHOLD)


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
    assert values["temperature"] == np.float32(found.calibration.params.temperature)
    assert values["prediction_set_threshold"] == np.float32(found.calibration.conformal[0].threshold)
    assert values["energy_threshold"] == np.float32(found.calibration.ood.threshold)


@pytest.mark.parametrize("name", MODELS_SERVED)
def test_committed_bundles_reproduce_their_test_vectors(name: str) -> None:
    """The probabilities of calibration.json follow from its logits at its temperature."""
    found = bundle.discover(BUNDLES)[name]
    for vector in found.calibration.test_vectors:
        logits = np.array([vector.logits])
        np.testing.assert_allclose(
            softmax(logits / found.calibration.params.temperature)[0], vector.probabilities, atol=1e-5
        )
        assert abs(sum(vector.probabilities) - 1) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS_SERVED)
def test_both_committed_forms_agree_with_the_committed_weights(name: str) -> None:
    """TorchScript, ONNX Runtime and PyTorch give the same probabilities to 1e-5, at batch 1 and 64."""
    found = bundle.discover(BUNDLES)[name]
    net = load_network(MODELS[name].build(), weights_path(name))
    calibration = found.calibration
    graph = CalibratedGraph(
        net,
        found.manifest.input,
        calibration.params.temperature,
        calibration.conformal[0].threshold,
        calibration.ood.threshold,
    )
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
    """The temperature in the graph is the one that counts, and a graph edited afterwards is not served."""
    source = bundle.discover(BUNDLES)["digits"].directory
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
    with pytest.raises(BundleError, match=r"model\.onnx"):
        bundle.load(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_an_existing_version_is_never_overwritten() -> None:
    """Exporting the committed version again fails with one line and changes nothing."""
    ended = run("digits", "--version", "1")
    assert ended.returncode == 1
    assert "exists; choose another --version" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_weights_that_are_none_are_named(tmp_path: Path) -> None:
    """A broken file and the weights of another network are refused in one line."""
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "other.json").write_text("{}")
    torch.save(MODELS["cifar10"].build().state_dict(), tmp_path / "other.pt")
    for name in ("broken.pt", "other.pt"):
        ended = run("digits", "--bundles", str(tmp_path / "bundles"), "--weights", str(tmp_path / name))
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"export: {tmp_path / name}")
        assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "bundles").exists()


@pytest.mark.slow
def test_missing_weights_are_named(tmp_path: Path) -> None:
    """The error says which file and which command makes it."""
    ended = run("digits", "--bundles", str(tmp_path), "--weights", str(tmp_path / "none.pt"))
    assert ended.returncode == 1
    assert "python -m models.train" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(data_dir() is None, reason="needs the full MNIST data set in DATA_DIR")
def test_exporting_again_gives_the_committed_bundle(tmp_path: Path) -> None:
    """The committed bundle is what the committed command makes of the committed weights."""
    ended = run("digits", "--bundles", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    made, committed = bundle.load(tmp_path / "digits" / "1"), bundle.discover(BUNDLES)["digits"]
    assert made.calibration.params.temperature == pytest.approx(committed.calibration.params.temperature, rel=1e-4)
    assert made.calibration.data == committed.calibration.data
    figures = committed.calibration.metrics.after
    assert made.calibration.metrics.after.accuracy == pytest.approx(figures.accuracy, abs=1e-4)
    assert made.manifest.labels == committed.manifest.labels
    assert not [path for path in (tmp_path / "digits").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.skipif(data_dir() is None, reason="needs the full data sets in DATA_DIR")
@pytest.mark.parametrize("name", MODELS_SERVED)
def test_a_committed_graph_scores_what_is_published(name: str) -> None:
    """Accuracy and ECE of the committed file over the whole test set are those of calibration.json and of the card."""
    from models.datasets import load, pixels

    found = bundle.discover(BUNDLES)[name]
    data = load(MODELS[name].dataset, data_dir())
    fed = pixels(MODELS[name].dataset, data.test_images)
    session = onnxruntime.InferenceSession(found.directory / onnx_backend.FILE, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"pixels": fed[i : i + 500]})[0] for i in range(0, len(fed), 500)]
    probabilities = np.concatenate(parts)
    correct = probabilities.argmax(1) == data.test_labels
    published = found.calibration.metrics.after
    assert correct.mean() == pytest.approx(published.accuracy, abs=2e-4)
    assert expected_calibration_error(probabilities.max(1), correct) == pytest.approx(published.ece_15, abs=1e-4)
    assert f"{published.accuracy:.2%}" in (found.directory / "MODEL_CARD.md").read_text()
    assert json.loads(weights_path(name).with_suffix(".json").read_text())["dataset"] == MODELS[name].dataset


def test_every_network_of_the_zoo_has_the_parameters_its_docstring_says() -> None:
    """Counts in the modules' docstrings are those of the networks."""
    for recipe in MODELS.values():
        net = recipe.build()
        assert isinstance(net, nn.Module)
        count = sum(p.numel() for p in net.parameters())
        assert f"{count:,} parameters" in (sys.modules[type(net).__module__].__doc__ or "")
