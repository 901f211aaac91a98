"""Every exported form answers as the PyTorch network does, or nothing is saved."""

import numpy as np
import numpy.typing as npt
import torch

from export.graph import CalibratedGraph
from service.backends import Backend, Outputs
from service.backends.agreement import LOGIT_TOLERANCE, PROBABILITY_TOLERANCE
from service.images import Pixels

BATCH_SIZES = (1, 64)


class ParityError(Exception):
    """An exported form that answers differently from the network it came from."""


def verify(graph: CalibratedGraph, backend: Backend, pixels: Pixels, form: str) -> float:
    """Compare on real images (N, H, W, 3) at batch 1 and 64; return the largest difference of logits.

    Raises ParityError when a logit is off by more than 1e-4, a probability by more than 1e-5, or a label changes.
    """
    worst = 0.0
    expected = reference(graph, pixels)
    for size in BATCH_SIZES:
        answers = run(backend, pixels, size)
        gaps = {
            "logits": (_gap(answers.logits, expected.logits), LOGIT_TOLERANCE),
            "probabilities": (_gap(answers.probabilities, expected.probabilities), PROBABILITY_TOLERANCE),
        }
        for name, (gap, tolerance) in gaps.items():
            if not gap <= tolerance:
                raise ParityError(f"{form} at batch {size}: {name} differ by {gap:.2e}, more than {tolerance:g}")
        changed = int((answers.logits.argmax(1) != expected.logits.argmax(1)).sum())
        if changed:
            raise ParityError(f"{form} at batch {size}: {changed} of {len(pixels)} images change their label")
        worst = max(worst, gaps["logits"][0])
    return worst


def run(backend: Backend, pixels: Pixels, batch_size: int) -> Outputs:
    """What an exported form answers for (N, H, W, 3) uint8, so many images at a time."""
    return Outputs.concatenate([backend.forward(part) for part in _parts(pixels, batch_size)])


@torch.inference_mode()
def reference(graph: CalibratedGraph, pixels: Pixels, batch_size: int = 500) -> Outputs:
    """What the PyTorch network answers for (N, H, W, 3) uint8."""
    graph.eval()
    batches = [graph(torch.from_numpy(part)) for part in _parts(pixels, batch_size)]
    return Outputs(*(torch.cat(column).numpy() for column in zip(*batches, strict=True)))


def _parts(pixels: Pixels, size: int) -> list[Pixels]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]


def _gap(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max())
