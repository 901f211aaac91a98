"""Whether another form of a network gives the same answers."""

import numpy as np
import numpy.typing as npt

from service.backends import Outputs

# In nats, for energy and score too.
LOGIT_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-5
TOLERANCES = {
    "logits": LOGIT_TOLERANCE,
    "probabilities": PROBABILITY_TOLERANCE,
    "energy": LOGIT_TOLERANCE,
    "ood_score": LOGIT_TOLERANCE,
}
FLAGS = ("prediction_set", "is_ood")


def disagreement(answers: Outputs, expected: Outputs) -> str | None:
    """The first output of `answers` that is not as expected and by how much; None where all agree."""
    for name, tolerance in TOLERANCES.items():
        left, right = getattr(answers, name), getattr(expected, name)
        if left.shape != right.shape:
            return f"{name} have the shape {left.shape}, not {right.shape}"
        gap = _gap(left, right)
        # Not "gap > tolerance", which a NaN would pass.
        if not gap <= tolerance:
            return f"{name} differ by {gap:.1e}, more than {tolerance:g}"
    for name in FLAGS:
        if not np.array_equal(getattr(answers, name), getattr(expected, name)):
            return f"{name} differs"
    return None


def _gap(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max())
