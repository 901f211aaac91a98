"""What a variant's speed is: `python -m loadtest.variants cifar10` runs each form of a model on one core, in turn.

The network in float32 by ONNX Runtime, the same by MNN's Winograd convolutions where it may be, and each variant there
is. Prints medians of many short turns, and by how much each is faster than float32, as the median over the turns.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from export.variant import side_by_side
from loadtest.promised import turn
from service import bundle
from service.backends import Backend, Plan
from service.backends import onnx as onnx_backend
from service.bundle import Bundle
from service.documents import VARIANT_PRECISIONS
from service.errors import BundleError
from service.images import Pixels
from service.settings import BUNDLES

BATCHES = (1, 32)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.variants", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help="where bundles are kept (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=50, help="of each; default: %(default)s")
    given = parser.parse_args(argv)
    try:
        forms = found_in(given.bundles, given.model)
    except BundleError as error:
        print(f"variants: {error}", file=sys.stderr)
        return 1
    print(side_by_side(forms))
    runnable = dict(backends(forms))
    spec = forms["float32"].manifest.input
    for batch in BATCHES:
        noise = np.random.default_rng(0).integers(0, 256, (batch, spec.height, spec.width, 3), np.uint8)
        print(measure(runnable, noise, given.turns), flush=True)
    return 0


def found_in(root: Path, model: str) -> dict[str, Bundle]:
    """The bundle of a model and its variants, by precision. Raises BundleError."""
    forms = {"float32": bundle.discover(root, (model,))[model]}
    for precision in VARIANT_PRECISIONS:
        if (root / bundle.folder_name(model, precision)).is_dir():
            forms[precision] = bundle.discover(root, (model,), precision=precision)[model]
    return forms


def backends(forms: Mapping[str, Bundle]) -> Iterator[tuple[str, Backend]]:
    """Each form ready to run on one core, and float32 once more with Winograd's convolutions, where these agree."""
    for form, found in forms.items():
        yield form, onnx_backend.load(found.directory, "cpu", 1, seal=found.seal)
    found = forms["float32"]
    winograd = onnx_backend.load(found.directory, "cpu", 1, winograd=True, seal=found.seal)
    if winograd.placement.winograd:
        winograd.plan = Plan(winograd_from=1)
        yield "Winograd", winograd


def measure(runnable: Mapping[str, Backend], pixels: Pixels, turns: int) -> str:
    """A line: images a second of each in batches like this one, and how many times float32's that is."""
    for backend in runnable.values():
        backend.forward(pixels)
    rounds = [
        {form: turn(partial(backend.forward, pixels)) for form, backend in runnable.items()} for _ in range(turns)
    ]
    told = []
    for form in runnable:
        rate = len(pixels) / statistics.median(taken[form] for taken in rounds)
        gain = statistics.median(taken["float32"] / taken[form] for taken in rounds)
        told.append(f"{form} {rate:,.0f} images/s (× {gain:.2f})")
    return f"batch {len(pixels)}: {', '.join(told)}"


if __name__ == "__main__":
    sys.exit(main())
