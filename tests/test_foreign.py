"""A stranger's ONNX classifier as a bundle: it answers as it did, and what cannot be wrapped is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from loadtest.foreign import main
from service import bundle
from service.backends import onnx as onnx_backend
from service.calibration import energy, softmax

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
LABELS = "cat,dog,axolotl,newt"


def classifier(
    *,
    softmax_axis: int | None = None,
    opset: int = 17,
    size: tuple[Any, Any] = (8, 10),
    batch: Any = "n",
    channels: int = 3,
    extra_input: bool = False,
    kind: int = TensorProto.FLOAT,
    flat: bool = True,
) -> onnx.ModelProto:
    """A convolution, a mean and four logits, with the names the wrapping uses for its own."""
    rng = np.random.default_rng(0)
    weights = {
        "mean": rng.normal(size=(5, channels, 3, 3)).astype(np.float32),
        "std": rng.normal(size=(5, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "mean"], ["planes"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["planes"], ["scaled"]),
        helper.make_node("GlobalMaxPool", ["scaled"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["energy"]),
        helper.make_node("MatMul", ["energy", "std"], ["logits"]),
    ]
    if softmax_axis is not None:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=softmax_axis))
    inputs = [helper.make_tensor_value_info("pixels", kind, (batch, channels, *size))]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, (1,)))
    output = nodes[-1].output[0] if flat else "pooled"
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, (batch, 4) if flat else (batch, 5, 1, 1))]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def wrapped(path: Path, model: onnx.ModelProto, *options: str) -> int:
    onnx.save(model, path / "model.onnx")
    return wrap_file(path / "model.onnx", path, *options)


def wrap_file(file: Path, path: Path, *options: str) -> int:
    numbers = [f"--{name}={','.join(map(str, values))}" for name, values in (("mean", MEAN), ("std", STD))]
    return main([str(file), "--name", "guest", "--labels", LABELS, *numbers, "--into", str(path / "bundles"), *options])


@pytest.mark.slow
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("softmax_axis", [None, -1, 1])
def test_wrapped_model_answers_as_it_did(tmp_path: Path, softmax_axis: int | None, opset: int) -> None:
    """Its logits and probabilities are those of the model itself on normalised floats; the rest follows from them."""
    assert wrapped(tmp_path, classifier(softmax_axis=softmax_axis, opset=opset)) == 0
    found = bundle.load(tmp_path / "bundles" / "guest" / "1")
    pixels = np.random.default_rng(1).integers(0, 256, (7, 8, 10, 3), np.uint8)
    answers = onnx_backend.load(found.directory, "cpu", 1).forward(pixels)

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    (expected,) = session.run(None, {"pixels": images})
    probabilities = softmax(expected) if softmax_axis is None else expected
    np.testing.assert_allclose(answers.probabilities, probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(softmax(answers.logits), probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(answers.energy, energy(answers.logits), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(answers.ood_score, answers.energy)
    highest = answers.probabilities.max(1, keepdims=True)
    assert (answers.prediction_set == (answers.probabilities >= highest)).all()
    assert not answers.is_ood.any()


def test_bundle_tells_what_it_is(tmp_path: Path) -> None:
    """It is uncalibrated, and its card and its training record say that it is no model for use."""
    assert wrapped(tmp_path, classifier(), "--version", "2.1") == 0
    found = bundle.discover(tmp_path / "bundles")["guest"]
    assert (found.manifest.version, found.manifest.labels) == ("2.1", LABELS.split(","))
    assert (found.manifest.input.mean, found.manifest.input.std) == (MEAN, STD)
    assert found.calibration is None
    assert "not for use" in found.manifest.training["note"]
    assert "not for use" in (found.directory / "MODEL_CARD.md").read_text()


def test_wrapping_is_repeatable(tmp_path: Path) -> None:
    """The same model gives the same bundle."""
    assert wrapped(tmp_path, classifier()) == wrapped(tmp_path, classifier(), "--version", "2") == 0
    first, second = (bundle.load(tmp_path / "bundles" / "guest" / version).sha256 for version in "12")
    assert first == second


def test_size_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of no size of its own needs one; one that has is not given another."""
    model = classifier(size=("h", "w"))
    assert wrapped(tmp_path, model) == 1
    assert "choose one with --size" in capsys.readouterr().err
    assert wrapped(tmp_path, model, "--size", "12x9") == 0
    found = bundle.load(tmp_path / "bundles" / "guest" / "1").manifest.input
    assert (found.height, found.width) == (12, 9)
    assert wrapped(tmp_path, classifier(), "--size", "12x9", "--version", "2") == 1
    assert "takes images of 8x10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (classifier(extra_input=True), "one input; this model has 2"),
        (classifier(channels=1), r"(N, 3, H, W) is needed"),
        (classifier(flat=False), r"(N, C) is needed"),
        (classifier(kind=TensorProto.FLOAT16), "32-bit floats"),
        (classifier(batch=1), "dynamic batch"),
        (classifier(opset=12), "opset 12 is too old"),
    ],
    ids=["two inputs", "grey", "no classes", "half floats", "fixed batch", "old opset"],
)
def test_other_models_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: onnx.ModelProto, complaint: str
) -> None:
    """What is no image classifier is refused with the reason, and nothing is written."""
    assert wrapped(tmp_path, model) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("content", [None, b"", b"no model"], ids=["missing", "empty", "text"])
def test_unreadable_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    """A file that is missing or no ONNX is refused by name."""
    file = tmp_path / "other.onnx"
    if content is not None:
        file.write_bytes(content)
    assert wrap_file(file, tmp_path) == 1
    assert f"{file} is not a sound ONNX file" in capsys.readouterr().err


def test_number_of_labels_must_be_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels may be counted or named, as many as there are classes."""
    assert wrapped(tmp_path, classifier(), "--labels", "5") == 1
    assert "4 classes" in capsys.readouterr().err
    assert wrapped(tmp_path, classifier(), "--labels", "4") == 0
    assert bundle.load(tmp_path / "bundles" / "guest" / "1").manifest.labels == ["c0", "c1", "c2", "c3"]


def test_existing_bundle_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A version once written is not overwritten."""
    assert wrapped(tmp_path, classifier()) == 0
    before = bundle.load(tmp_path / "bundles" / "guest" / "1")
    assert wrapped(tmp_path, classifier(softmax_axis=1)) == 1
    assert "exists; choose another --version" in capsys.readouterr().err
    assert bundle.load(before.directory) == before
    assert [path.name for path in before.directory.parent.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "option",
    ["--name=../up", "--version=new", "--labels=a,a", "--labels=1", "--mean=1,2", "--std=1,0,1", "--size=8"],
)
def test_options_that_make_no_sense(tmp_path: Path, option: str) -> None:
    """A mistyped option is refused before the model is read."""
    with pytest.raises(SystemExit, match="2"):
        wrap_file(tmp_path / "missing.onnx", tmp_path, option)
