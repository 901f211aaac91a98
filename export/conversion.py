"""A network in fewer bits, by ONNX Runtime's own tools: whole numbers of 8 for a CPU, floats of 16 for a GPU."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, compose, utils

from export.parts import INPUT, standardised
from service.documents import VariantPrecision
from service.images import Pixels

# Operators that an integer runtime has, or that only move numbers about.
QUANTIZED = ["Conv", "Gemm", "MatMul", "Relu", "MaxPool", "Add", "Concat", "Gather", "Reshape", "Transpose"]
WEIGHTED = ("Conv", "Gemm", "MatMul")
# Images at once while ranges are looked for: all their activations are kept.
BATCH_SIZE = 32


def int8(network: ModelProto, images: Pixels) -> ModelProto:
    """Weights as int8 with a scale for each channel, activations as uint8 within the ranges that `images` give them.

    Static, in QDQ form (Jacob et al. 2018, https://arxiv.org/abs/1712.05877). The last layer with weights, which makes
    the logits that a calibration rests on, stays in float32. images: (N, H, W, 3) uint8.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="trueodds-") as folder, _quiet():
        given, folded, quantized = (Path(folder) / f"{name}.onnx" for name in ("given", "folded", "quantized"))
        onnx.save(network, given)
        quant_pre_process(given, folded, skip_symbolic_shape=True)
        named = _named(onnx.load(folded))
        quantize_static(
            named,
            quantized,
            Batches(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=[node.name for node in named.graph.node if node.op_type in WEIGHTED][-1:],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(quantized)


def fp16(network: ModelProto, images: Pixels) -> ModelProto:
    """Weights and activations as floats of 16 bits, from standardised pixels to logits. Needs no images.

    Before, small differences of large numbers count; so pixels are standardised in float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    start, parts = standardised(network), utils.Extractor(_named(network))
    before = parts.extract_model([INPUT], [start])
    behind = parts.extract_model([start], [output.name for output in network.graph.output])
    converted = convert_float_to_float16(behind, keep_io_types=True)
    # It puts its casts last; and what is told of values besides, both parts tell.
    OnnxModel.graph_topological_sort(converted.graph)
    del before.graph.value_info[:], converted.graph.value_info[:]
    return compose.merge_models(before, converted, io_map=[(start, start)])


CONVERSIONS: dict[VariantPrecision, Callable[[ModelProto, Pixels], ModelProto]] = {"int8": int8, "fp16": fp16}


class Batches:
    """Images as ONNX Runtime's quantizer asks for them."""

    def __init__(self, images: Pixels) -> None:
        self._batches = iter([images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)])

    def get_next(self) -> dict[str, Pixels] | None:
        """The next inputs; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _named(network: ModelProto) -> ModelProto:
    """With a name for each node, by which the tools tell them apart."""
    named = ModelProto()
    named.CopyFrom(network)
    for number, node in enumerate(named.graph.node):
        node.name = f"{number}.{node.op_type}"
    return named


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools advise, as warnings, what was done already."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
