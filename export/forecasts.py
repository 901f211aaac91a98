"""Recalibrated forecasts of real and ordered outcomes: R(p) = P[Y ≤ F⁻¹(p)] (Kuleshov, Fenner & Ermon 2018).

For forecasts that are distribution functions F: of a temperature, an age, a grade from 1 to 5. Not for classes without
an order: there F depends on how they are numbered, and so would the answer. Their form of R is `isotonic_pooled`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.calibration import Floats, Labels

Doubles = npt.NDArray[np.float64]
# As many as keep R within 1/1000 of all of them together.
MOST_KNOTS = 512
# Values closer together are one: a map that leaps between them has no inverse in floating point.
DECIMALS = 9


@dataclass(frozen=True)
class Recalibrator:
    """R: [0, 1] → [0, 1], linear between (knots, values), both strictly increasing from 0 to 1.

    Raises ValueError for anything else.
    """

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.values) or not (_rises(self.knots) and _rises(self.values)):
            raise ValueError("the knots and values of a recalibrator rise strictly from 0 to 1, as many of each")

    def __call__(self, cdf: Floats) -> Doubles:
        """Recalibrated values of forecast distribution functions, of any shape."""
        return np.asarray(np.interp(cdf, self.knots, self.values))

    def level(self, quantile: Floats) -> Doubles:
        """R⁻¹: the recalibrated quantile q of a forecast is F⁻¹(level(q))."""
        return np.asarray(np.interp(quantile, self.values, self.knots))

    def document(self) -> dict[str, list[float]]:
        """As JSON has it; `Recalibrator.read` is the way back."""
        return {"knots": list(self.knots), "values": list(self.values)}

    @staticmethod
    def read(document: Mapping[str, Sequence[float]]) -> "Recalibrator":
        return Recalibrator(tuple(document["knots"]), tuple(document["values"]))


def fit(pits: Floats) -> Recalibrator:
    """Algorithm 1 of the paper. pits (T,): each forecast's F_t(y_t) at the outcome, on images or days held out.

    R is the isotonic regression of P̂(p) = |{t: F_t(y_t) ≤ p}| / (T + 1) on the p that occurred. These pairs increase
    already, so it passes through them. T + 1 rather than the paper's T keeps as much for what lies beyond every
    outcome seen as lies between two, so that R is invertible. Of more than 512 pairs evenly spread ones are kept.
    Raises ValueError unless there are values and all are in [0, 1].
    """
    if len(pits) == 0 or not ((pits >= 0) & (pits <= 1)).all():
        raise ValueError("R is fitted on one or more values of distribution functions, all in [0, 1]")
    places, counts = np.unique(np.round(np.asarray(pits, np.float64), DECIMALS), return_counts=True)
    shares = counts.cumsum() / (len(pits) + 1)
    # An outcome that its forecast ruled out says that some mass lies near the end, not where: R(0) = 0, R(1) = 1.
    inside = np.flatnonzero((places > 0) & (places < 1))
    kept = inside[np.unique(np.linspace(0, len(inside) - 1, min(len(inside), MOST_KNOTS)).astype(int))]
    return Recalibrator((0.0, *places[kept].tolist(), 1.0), (0.0, *shares[kept].tolist(), 1.0))


def ordinal_pits(probabilities: Floats, labels: Labels, seed: int = 0) -> Doubles:
    """F(y − 1) + V·p(y), V uniform: the randomised F(y) of ordered classes (Czado, Gneiting & Held 2009, section 2).

    probabilities (N, C) in the classes' order, labels (N,) → (N,). Uniform where the forecasts are calibrated, as
    F(y) itself is not, for it only takes the values where F steps. R fitted on them makes fresh ones uniform as far as
    its bends are wide beside those steps: nearly so for dozens of classes, about for five.
    """
    rows = np.arange(len(labels))
    above = _steps(probabilities)[rows, labels]
    below = above - np.asarray(probabilities, np.float64)[rows, labels]
    return np.clip(below + np.random.default_rng(seed).random(len(labels)) * (above - below), 0, 1)


def ordinal(recalibrator: Recalibrator, probabilities: Floats) -> Doubles:
    """Probabilities of ordered classes by R∘F: R(F(k)) − R(F(k − 1)). (N, C) → (N, C), rows sum to 1."""
    return np.diff(recalibrator(_steps(probabilities)), axis=1, prepend=0)


def _steps(probabilities: Floats) -> Doubles:
    """F at each class, the last exactly 1. (N, C) → (N, C)."""
    sums = np.cumsum(np.asarray(probabilities, np.float64), axis=1)
    return np.asarray(sums / sums[:, -1:])


def _rises(numbers: Sequence[float]) -> bool:
    return numbers[0] == 0 and numbers[-1] == 1 and bool((np.diff(numbers) > 0).all())
