"""ONNX, by torch.export: dynamic batch, weights inside the file."""

import logging
import warnings
from pathlib import Path

import onnx
import torch

from export.graph import CalibratedGraph
from service.backends import OUTPUTS
from service.images import InputSpec

OPSET = 20


def write(graph: CalibratedGraph, spec: InputSpec, path: Path) -> None:
    """Write `graph` with input `pixels` (N, H, W, 3) uint8 and the outputs of service.backends.Outputs."""
    example = torch.zeros((2, spec.height, spec.width, 3), dtype=torch.uint8)
    # The exporter reports on every optional framework it does not find.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    onnx.save(_without_traces(program.model_proto), path)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    # The exporter notes beside every node which line of which file, on this machine, it came from.
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    return model
