"""Any ONNX classifier, with pixels before it and a whole answer behind: the graph of a bundle without calibration."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper, numpy_helper

from service.images import InputSpec, Pixels

# Softmax has meant one axis, and the comparisons have existed, since this one.
OLDEST_OPSET = 13
# Since this one reductions take their axes as an input.
AXES_ARE_AN_INPUT = 18
# So that no name of the network's is one of ours.
PREFIX = "network."
BATCH_SIZE = 100

Floats = npt.NDArray[np.float32]


class NotAClassifier(Exception):
    """Why a file cannot be wrapped; names the remedy where there is one."""


@dataclass(frozen=True)
class Foreign:
    """Names the model's ends and its logits; these are its output itself unless that is probabilities."""

    path: Path
    model: ModelProto
    input: str
    output: str
    logits: str
    opset: int
    size: tuple[int, int]

    @classmethod
    def read(cls, path: Path, size: tuple[int, int] | None = None) -> "Foreign":
        """Raises NotAClassifier; `size` (height, width) is needed where the model leaves its own open."""
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model)
        except (OSError, DecodeError, onnx.checker.ValidationError) as error:
            raise NotAClassifier(f"{path} is not a sound ONNX file: {error}") from error
        given, answered = _ends(model)
        opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
        if opset < OLDEST_OPSET:
            raise NotAClassifier(f"opset {opset} is too old; export the model with {OLDEST_OPSET} or newer")
        last = next((node for node in model.graph.node if answered.name in node.output), None)
        logits = last.input[0] if last is not None and _is_softmax(last) else answered.name
        return cls(path, model, given.name, answered.name, logits, opset, _size(given, size))

    def wrapped(self, spec: InputSpec) -> ModelProto:
        """The network with normalisation before it and the same work behind it that a calibrated graph has.

        Nothing is fitted, so the prediction set holds the likeliest label only and no image is strange.
        """
        model = compose.add_prefix(self.model, PREFIX)
        graph = model.graph
        parameters = {
            # 255 is folded in, so that standardising is one subtraction and one division.
            "mean": np.array(spec.mean, np.float32).reshape(1, 3, 1, 1) * 255,
            "std": np.array(spec.std, np.float32).reshape(1, 3, 1, 1) * 255,
            "temperature": np.array(1, np.float32),
            "prediction_set_threshold": np.array(1, np.float32),
            "ood_threshold": np.array(np.inf, np.float32),
            "classes": np.array([1]),
        }
        inner = [node for node in graph.node if self.logits == self.output or PREFIX + self.output not in node.output]
        nodes = [*_standardised(PREFIX + self.input), *inner, *self._calibrated(PREFIX + self.logits)]
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in parameters.items())
        graph.input.append(
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("batch", spec.height, spec.width, 3))
        )
        graph.output.extend(
            helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in OUTPUT_TYPES.items()
        )
        onnx.checker.check_model(model)
        return model

    def _calibrated(self, logits: str) -> list[NodeProto]:
        return [
            helper.make_node("Identity", [logits], ["logits"]),
            helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
            helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=1),
            self._reduction("ReduceMax", "probabilities", "highest", keepdims=1),
            # The likeliest label always belongs to the set.
            helper.make_node("Min", ["prediction_set_threshold", "highest"], ["least"]),
            helper.make_node("GreaterOrEqual", ["probabilities", "least"], ["prediction_set"]),
            # -log Σ exp of the logits, by operators that all runtimes read alike: MNN takes ReduceLogSumExp's axes from
            # an attribute only, and opset 18 has made them an input.
            helper.make_node("LogSoftmax", ["logits"], ["log_probabilities"], axis=1),
            self._reduction("ReduceMax", "log_probabilities", "highest_log_probability", keepdims=0),
            self._reduction("ReduceMax", "logits", "highest_logit", keepdims=0),
            helper.make_node("Sub", ["highest_log_probability", "highest_logit"], ["energy"]),
            helper.make_node("Greater", ["energy", "ood_threshold"], ["is_ood"]),
            helper.make_node("Identity", ["energy"], ["ood_score"]),
        ]

    def _reduction(self, kind: str, values: str, result: str, keepdims: int) -> NodeProto:
        """Over the classes."""
        if self.opset >= AXES_ARE_AN_INPUT:
            return helper.make_node(kind, [values, "classes"], [result], keepdims=keepdims)
        return helper.make_node(kind, [values], [result], axes=[1], keepdims=keepdims)

    def answers(self, pixels: Pixels, spec: InputSpec) -> tuple[Floats, Floats]:
        """The output and the logits of the model itself for (N, H, W, 3) uint8, standardised outside: (N, C) each."""
        model = ModelProto()
        model.CopyFrom(self.model)
        if self.logits != self.output:
            model.graph.output.append(helper.make_tensor_value_info(self.logits, TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        mean, std = np.array(spec.mean), np.array(spec.std)
        parts = []
        for part in np.array_split(pixels, math.ceil(len(pixels) / BATCH_SIZE)):
            images = np.ascontiguousarray(((part / 255 - mean) / std).transpose(0, 3, 1, 2), np.float32)
            parts.append(session.run([self.output, self.logits], {self.input: images}))
        output, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
        return output, logits


OUTPUT_TYPES = {
    "logits": (TensorProto.FLOAT, ("batch", "classes")),
    "probabilities": (TensorProto.FLOAT, ("batch", "classes")),
    "prediction_set": (TensorProto.BOOL, ("batch", "classes")),
    "energy": (TensorProto.FLOAT, ("batch",)),
    "is_ood": (TensorProto.BOOL, ("batch",)),
    "ood_score": (TensorProto.FLOAT, ("batch",)),
}


def _ends(model: ModelProto) -> tuple[ValueInfoProto, ValueInfoProto]:
    """The input and the output. Raises NotAClassifier unless they are what Foreign says."""
    # Older files count their weights among the inputs.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for values, kind in ((inputs, "input"), (list(model.graph.output), "output")):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise NotAClassifier(f"a classifier has one {kind}; this model has {len(values)} ({names})")
    given, answered = inputs[0], model.graph.output[0]
    if given.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise NotAClassifier(f"the input {given.name} is not of 32-bit floats")
    images, answers = _dimensions(given), _dimensions(answered)
    if len(images) != 4 or images[1] != 3:
        raise NotAClassifier(f"the input {given.name} has shape {images}; (N, 3, H, W) is needed")
    if len(answers) != 2:
        raise NotAClassifier(f"the output {answered.name} has shape {answers}; (N, C) is needed")
    if images[0] is not None:
        raise NotAClassifier(f"the batch is fixed at {images[0]}; export the model with a dynamic batch")
    return given, answered


def _dimensions(value: ValueInfoProto) -> tuple[int | None, ...]:
    """None for each that varies."""
    shape = value.type.tensor_type.shape
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in shape.dim)


def _size(given: ValueInfoProto, wanted: tuple[int, int] | None) -> tuple[int, int]:
    height, width = _dimensions(given)[2:]
    if height is None or width is None:
        if wanted is None:
            raise NotAClassifier("the model takes images of several sizes; choose one with --size")
        return wanted
    if wanted not in {None, (height, width)}:
        raise NotAClassifier(f"the model takes images of {height}x{width}, not of the --size given")
    return height, width


def _is_softmax(node: NodeProto) -> bool:
    """Over the classes, which is also what it does when it does not say."""
    return node.op_type == "Softmax" and all(item.i in {-1, 1} for item in node.attribute if item.name == "axis")


def _standardised(result: str) -> list[NodeProto]:
    # Transposed as bytes, a quarter of what the floats would be.
    return [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], [result]),
    ]
