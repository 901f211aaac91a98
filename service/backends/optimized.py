"""Graphs optimised by ONNX Runtime ahead of time, for one kind of processor, their weights mapped from a file.

ONNX Runtime would otherwise parse, fuse and reorder at every start, and keep a copy of the weights in each process and
session. Two cores of an AMD EPYC (Zen 4), ONNX Runtime 1.32, cifar10 (7.9 MB): a session starts in 3 instead of 38 ms
and holds 1 instead of 27 MiB of its own; the weights are one mapping, shared by sessions and by processes.

<cache>/onnx/<key>/graph.onnx, weights.bin and, vouching for both, digests.json. The key names the bundle's model.onnx,
whose own digest the manifest vouches for, the runtime and the processor. What is hashed is what is run: the bytes of
the graph, and the mapping of the weights, in a file that only this user may write.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.backends.external_data import external_tensors, self_contained
from service.backends.kept import DamagedError, kept_or_made, key_of, make_private, opened
from service.backends.processor import processor
from service.files import Folder, sha256
from service.seal import ModelFile

GRAPH, WEIGHTS, DIGESTS = "graph.onnx", "weights.bin", "digests.json"
# Changes when what is written here changes.
FORMAT = 1
# Smaller weights stay in the graph: each external one is a line of bookkeeping.
SMALLEST_EXTERNAL_BYTES = 1024


@dataclass(frozen=True)
class OptimizedGraph:
    """A graph, and its weights, mapped. `folder` holds their file, which must be there when a session is made: ONNX
    Runtime looks whether it is, and then takes these.
    """

    content: bytes
    folder: Path
    weights: dict[str, npt.NDArray[np.generic]]


@contextmanager
def optimized(model: ModelFile, cache: Path | None) -> Iterator[OptimizedGraph]:
    """`model` optimised for this processor: from the cache, else made now, and kept there if that is possible.

    Raises BundleError, OSError where there is no room even for a temporary file, DamagedError, or what ONNX Runtime
    raises.
    """
    with kept_or_made(cache, f"onnx/{_key(model)}", "graphs", read, partial(_write, model)) as (_, graph):
        # Its mapping outlives a file's name.
        yield graph


def _write(model: ModelFile, folder: Path) -> None:
    import onnxruntime as ort

    content = self_contained(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.optimized_model_filepath = str(folder / GRAPH)
    entry = options.add_session_config_entry
    entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
    entry("session.optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST_EXTERNAL_BYTES))
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # A model without large weights has no file of them.
    (folder / WEIGHTS).touch()
    make_private(folder)
    with opened(folder) as made:
        digests = {name: made.digest(name) for name in (GRAPH, WEIGHTS)}
    (folder / DIGESTS).write_text(json.dumps(digests))
    make_private(folder)


def read(folder: Path) -> OptimizedGraph:
    """Raises FileNotFoundError where there is nothing, DamagedError where it cannot be used."""
    with opened(folder) as files:
        try:
            expected: dict[str, Any] = json.loads(files.read(DIGESTS))
            content = files.read(GRAPH)
            if sha256(content) != expected[GRAPH]:
                raise DamagedError(f"{GRAPH} has changed")
            weights = _mapped(files)
            # Of the mapping itself: what is verified is what is served.
            if hashlib.sha256(weights.data).hexdigest() != expected[WEIGHTS]:
                raise DamagedError(f"{WEIGHTS} has changed")
            found = {tensor.name: tensor.array(weights) for tensor in external_tensors(content)}
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise DamagedError(f"it cannot be read ({error!r})") from error
    return OptimizedGraph(content, folder, found)


def _mapped(files: Folder) -> npt.NDArray[np.uint8]:
    with files.open(WEIGHTS) as file:
        # An empty file cannot be mapped.
        return np.memmap(file, np.uint8, "r") if os.fstat(file.fileno()).st_size else np.empty(0, np.uint8)


def _key(model: ModelFile) -> str:
    import onnxruntime as ort

    runs_on = processor()
    return key_of(str(FORMAT), model.sha256, ort.__version__, ort.get_build_info(), runs_on.name, runs_on.features)
