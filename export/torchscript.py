"""TorchScript, by tracing. Not frozen, which would take the names off the parameters: the backend freezes it."""

import zipfile
from io import BytesIO
from pathlib import Path

import torch

from export.graph import CalibratedGraph
from service.backends.torchscript import deprecation_known
from service.images import InputSpec


def write(graph: CalibratedGraph, spec: InputSpec, path: Path) -> None:
    """Write `graph` as a traced module that takes (N, H, W, 3) uint8."""
    example = torch.zeros((2, spec.height, spec.width, 3), dtype=torch.uint8)
    archive = BytesIO()
    with deprecation_known():
        torch.jit.save(torch.jit.trace(graph.eval(), example), archive)
    _write_without_traces(archive, path)


def _write_without_traces(archive: BytesIO, path: Path) -> None:
    # Its debug entries note which line of which file, on this machine, each node came from.
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
