"""Where a model is right and wrong: by confidence, by class, and by how much it may abstain from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.nulls import DRAWS, redrawn
from export.scoring import bin_numbers, correct, tally
from service.calibration import BINS, Floats, Labels

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """The n images whose confidence lies in (low, high], and the interval of accuracy that chance alone would give.

    The interval holds 99 % of what the bin's accuracy would be if every probability were true. None without images.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None
    null: tuple[float, float] | None


@dataclass(frozen=True)
class RiskCoverage:
    """Answering only at confidences ≥ threshold: the share of images answered and the error rate among them.

    All (K,), one for each confidence that occurs, from the highest down to coverage 1. `export.scoring.aurc` is the
    area under it.
    """

    thresholds: Doubles
    coverages: Doubles
    risks: Doubles


def reliability_bins(probabilities: Floats, labels: Labels, draws: int = DRAWS, seed: int = 0) -> list[Bin]:
    """The reliability diagram of the top label (DeGroot & Fienberg 1983), 15 bins. (N, C), (N,)."""
    confidences = np.asarray(probabilities.max(1), np.float64)
    bins = bin_numbers(confidences)
    sizes = np.bincount(bins, minlength=BINS)
    hits = tally(bins, correct(probabilities, labels[None]), BINS)[0]
    chance = np.concatenate(
        [tally(bins, correct(probabilities, drawn), BINS) for drawn in redrawn(probabilities, draws, seed)]
    )
    lows, highs = np.percentile(chance, (0.5, 99.5), axis=0)
    totals = np.bincount(bins, confidences, BINS)
    return [
        Bin(k / BINS, (k + 1) / BINS, int(n), *(_means(n, totals[k], hits[k], lows[k], highs[k])))
        for k, n in enumerate(sizes)
    ]


def risk_coverage(probabilities: Floats, labels: Labels) -> RiskCoverage:
    """The risk–coverage curve of the top label's probability (Geifman & El-Yaniv 2017). (N, C), (N,).

    Images of equal confidence are answered together: no threshold can part them.
    """
    confidences = np.asarray(probabilities.max(1), np.float64)
    values, group, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    errors = np.bincount(group, ~correct(probabilities, labels[None])[0])[::-1].cumsum()
    answered = counts[::-1].cumsum()
    return RiskCoverage(values[::-1], answered / len(labels), errors / answered)


def confusion_matrix(probabilities: Floats, labels: Labels) -> npt.NDArray[np.intp]:
    """How many images of each class (row) were given each label (column). (N, C), (N,) → (C, C)."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2).reshape(classes, classes)


def _means(
    n: int, total: float, hits: int, low: float, high: float
) -> tuple[float, float, tuple[float, float]] | tuple[None, None, None]:
    return (float(total / n), float(hits / n), (float(low / n), float(high / n))) if n else (None, None, None)
