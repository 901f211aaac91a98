"""What the promises cost: `python -m loadtest.promised` runs each served graph with and without them, in turn.

Without them a graph gives logits and their softmax, as any other server's; with them also calibrated probabilities,
prediction sets, energy and the flag of strange images. Prints medians of many short turns and their ratio.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, utils

from service import bundle
from service.backends import OUTPUTS
from service.backends import onnx as onnx_backend
from service.errors import BundleError
from service.settings import BUNDLES

BATCHES = (1, 32)
# Seconds of one turn, long enough that the clock's grain does not count.
TURN_S = 0.05


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.promised", description=__doc__)
    parser.add_argument("--turns", type=int, default=100, help="of each; default: %(default)s")
    given = parser.parse_args(argv)
    try:
        found = bundle.discover(BUNDLES)
    except BundleError as error:
        print(f"promised: {error}", file=sys.stderr)
        return 1
    for name, each in found.items():
        for batch in BATCHES:
            print(measure(name, each.directory / onnx_backend.FILE, batch, given.turns), flush=True)
    return 0


def measure(name: str, path: Path, batch: int, turns: int) -> str:
    """One line: µs an image with and without, and the ratio of each pair of neighbouring turns."""
    whole = _session(path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        bare = _session(_bare(path, Path(folder) / "bare.onnx"))
    shape = whole.get_inputs()[0].shape[1:]
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
    runs: list[Callable[[], object]] = [
        lambda: whole.run(OUTPUTS, {"pixels": pixels}),
        lambda: bare.run(None, {"pixels": pixels}),
    ]
    pairs = [[turn(run) for run in runs] for _ in range(turns)]
    with_, without = (statistics.median(column) * 1e6 / batch for column in zip(*pairs, strict=True))
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    return f"{name} batch {batch}: {with_:.1f} µs an image with, {without:.1f} without, ratio {ratio:.4f}"


def turn(run: Callable[[], object]) -> float:
    """Seconds a run, in one turn."""
    runs, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < TURN_S:
        run()
        runs += 1
    return took / runs


def _bare(path: Path, target: Path) -> bytes:
    """The same network with logits and their softmax only."""
    utils.extract_model(path, target, ["pixels"], ["logits"])
    model = onnx.load(target)
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None))
    content: bytes = model.SerializeToString()
    return content


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
