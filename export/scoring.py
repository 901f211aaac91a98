"""What probabilities are worth: figures of probabilities (N, C) under one or many labellings of the same N images.

Every metric takes labels (B, N), B labellings, and gives (B,) figures, so that the noise of a figure is had from the
same code as the figure. Bins are those of service.calibration: (k/15, (k+1)/15].
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from export.smoothing import smooth_calibration_error
from service.calibration import (
    BINS,
    Bools,
    Floats,
    Labels,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)

Doubles = npt.NDArray[np.float64]
Cells = npt.NDArray[np.intp]
Metric = Callable[[Floats, Labels], Doubles]


def nll(probabilities: Floats, labels: Labels) -> Doubles:
    """Negative log-likelihood, mean over images, in nats."""
    return np.array([negative_log_likelihood(probabilities, row) for row in labels])


def brier(probabilities: Floats, labels: Labels) -> Doubles:
    """Brier score over all classes, in [0, 2]."""
    return np.array([brier_score(probabilities, row) for row in labels])


def ece(probabilities: Floats, labels: Labels) -> Doubles:
    """Expected calibration error of the top label, 15 equal-width bins (Guo et al. 2017, equation 3)."""
    confidences = probabilities.max(1)
    return np.array([expected_calibration_error(confidences, row) for row in correct(probabilities, labels)])


def classwise_ece(probabilities: Floats, labels: Labels) -> Doubles:
    """Mean over classes k of the 15-bin error of p_k against 1[y = k] (Kull et al. 2019, equation 4)."""
    return np.asarray(class_errors(probabilities, labels).mean(1))


def equal_mass_ece(probabilities: Floats, labels: Labels) -> Doubles:
    """Expected calibration error of the top label in 15 bins of equally many images (Nguyen & O'Connor 2015).

    Equal confidences share a bin, so that the order of the images does not matter.
    """
    confidences = _confidences(probabilities)
    edges = np.quantile(confidences, np.arange(1, BINS) / BINS, method="inverted_cdf")
    return _gap(np.searchsorted(edges, confidences), confidences, correct(probabilities, labels), BINS)


def top_label_ece(probabilities: Floats, labels: Labels) -> Doubles:
    """Calibration error of the confidence given the predicted class as well (Gupta & Ramdas 2022, equation 3).

    15 equal-width bins for each predicted class, weighted by how many images they hold.
    """
    classes, confidences = probabilities.shape[1], _confidences(probabilities)
    cells = probabilities.argmax(1) * BINS + bin_numbers(confidences)
    return _gap(cells, confidences, correct(probabilities, labels), classes * BINS)


def smooth_ece(probabilities: Floats, labels: Labels) -> Doubles:
    """Calibration error of the top label without bins (Błasiok & Nakkiran 2023); see export.smoothing."""
    return smooth_calibration_error(_confidences(probabilities), correct(probabilities, labels))


def reliability(probabilities: Floats, labels: Labels) -> Doubles:
    """Σ n_b/N (confidence_b − accuracy_b)², Murphy's first term; 0 is best. See `murphy`."""
    return murphy(probabilities, labels)[0]


def resolution(probabilities: Floats, labels: Labels) -> Doubles:
    """Σ n_b/N (accuracy_b − accuracy)², Murphy's second term; more is better. See `murphy`."""
    return murphy(probabilities, labels)[1]


def uncertainty(probabilities: Floats, labels: Labels) -> Doubles:
    """Accuracy · (1 − accuracy), Murphy's third term; nothing the confidences could change. See `murphy`."""
    return murphy(probabilities, labels)[2]


def aurc(probabilities: Floats, labels: Labels) -> Doubles:
    """Area under the risk–coverage curve: mean over i of the error rate of the i most confident images.

    Geifman & El-Yaniv 2017. Images of equal confidence come in any order, over which the mean is taken.
    """
    n, confidences = len(probabilities), _confidences(probabilities)
    # Σ_i (1/i) Σ_{j≤i} e_j = Σ_j e_j Σ_{i≥j} 1/i: linear in the errors, so ties can share their mean weight.
    weights = np.cumsum(1 / np.arange(n, 0, -1.0))[::-1]
    _, group, sizes = np.unique(-confidences, return_inverse=True, return_counts=True)
    shared = np.bincount(np.sort(group), weights) / sizes
    return np.asarray(~correct(probabilities, labels) @ shared[group] / n)


METRICS: dict[str, Metric] = {
    "nll": nll,
    "brier": brier,
    "ece_15": ece,
    "classwise_ece_15": classwise_ece,
    "equal_mass_ece_15": equal_mass_ece,
    "top_label_ece_15": top_label_ece,
    "smooth_ece": smooth_ece,
    "reliability": reliability,
    "resolution": resolution,
    "uncertainty": uncertainty,
    "aurc": aurc,
}


def scores(probabilities: Floats, labels: Labels) -> dict[str, float]:
    """Every metric of probabilities (N, C) against labels (N,)."""
    return {name: float(metric(probabilities, labels[None])[0]) for name, metric in METRICS.items()}


def murphy(probabilities: Floats, labels: Labels) -> tuple[Doubles, Doubles, Doubles]:
    """Reliability, resolution and uncertainty (Murphy 1973) of the top label's confidence in the 15 bins of the ECE.

    Reliability − resolution + uncertainty is the Brier score in [0, 1] of 'the top label is right', each confidence
    replaced by the mean of its bin.
    """
    confidences, bins = _confidences(probabilities), bin_numbers(_confidences(probabilities))
    sizes = np.bincount(bins, minlength=BINS)
    filled = sizes > 0
    share, confidence = sizes[filled] / len(bins), np.bincount(bins, confidences, BINS)[filled] / sizes[filled]
    accuracy = tally(bins, correct(probabilities, labels), BINS)[:, filled] / sizes[filled]
    overall = accuracy @ share
    return (
        (confidence - accuracy) ** 2 @ share,
        (accuracy - overall[:, None]) ** 2 @ share,
        overall * (1 - overall),
    )


def class_errors(probabilities: Floats, labels: Labels) -> Doubles:
    """The 15-bin error of p_k against 1[y = k] of each class k. (N, C), (B, N) → (B, C)."""
    n, classes = probabilities.shape
    cells = np.arange(classes) * BINS + bin_numbers(probabilities)
    expected = np.bincount(cells.ravel(), probabilities.ravel(), classes * BINS)
    observed = tally(cells[np.arange(n), labels], np.ones(labels.shape, np.bool_), classes * BINS)
    return np.asarray(np.abs(observed - expected).reshape(-1, classes, BINS).sum(2) / n)


def correct(probabilities: Floats, labels: Labels) -> Bools:
    """Whether the top label is right. (N, C), (B, N) → (B, N)."""
    return np.asarray(labels == probabilities.argmax(1))


def bin_numbers(values: Floats) -> Cells:
    """The bin, 0 … 14, of each value in [0, 1]; an edge belongs to the bin below it, as in service.calibration."""
    return np.searchsorted(np.arange(1, BINS) / BINS, np.asarray(values, np.float64), side="left")


def tally(cells: Cells, hits: Bools, size: int) -> npt.NDArray[np.intp]:
    """How many hits fall into each cell. cells (N,) or (B, N) of 0 … size − 1, hits (B, N) → (B, size)."""
    rows = len(hits)
    of_row = np.arange(rows)[:, None] * size + cells
    return np.bincount(of_row[hits], minlength=rows * size).reshape(rows, size)


def _gap(cells: Cells, confidences: Doubles, hits: Bools, size: int) -> Doubles:
    """Σ over cells |hits − Σ confidences| / N, of each row of hits."""
    expected = np.bincount(cells, confidences, size)
    return np.asarray(np.abs(tally(cells, hits, size) - expected).sum(1) / len(cells))


def _confidences(probabilities: Floats) -> Doubles:
    return np.asarray(probabilities.max(1), np.float64)
