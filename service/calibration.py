"""From logits to probabilities that mean what they say: fit, apply and measure, side by side.

Fitting is for export; the parameters it finds live in the exported graph, so that every runtime applies them alike.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

BINS = 15
# ln T ~ N(0, 0.5²): a near-perfect model makes too few errors to fit T by likelihood alone.
LOG_TEMPERATURE_SD = 0.5
LOG_TEMPERATURE_RANGE = (np.log(1e-3), np.log(1e3))


def softmax(logits: Floats) -> Floats:
    """(N, C) → (N, C), rows sum to 1."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def energy(logits: Floats) -> Floats:
    """−log Σ exp(logits) (Liu et al. 2020, equation 4), in nats; higher is stranger. (N, C) → (N,)."""
    peak = logits.max(axis=1)
    return np.asarray(-(peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))))


def kl_uniform(logits: Floats) -> Floats:
    """The mean of the log-probabilities, −KL(uniform ‖ softmax) − log C, in nats; higher is stranger. (N, C) → (N,)."""
    return np.asarray(logits.mean(axis=1) + energy(logits))


def fit_temperature(logits: Floats, labels: Labels, prior_sd: float = LOG_TEMPERATURE_SD) -> float:
    """The temperature of greatest posterior density (Guo et al. 2017, equation 9, with a log-normal prior).

    logits (N, C), labels (N,). The log-likelihood of softmax(logits / T) is concave in 1 / T, so its slope in ln T
    changes sign once, and bisection cannot miss it. `prior_sd=inf` gives the plain likelihood fit.
    """
    if len(logits) == 0 or not np.isfinite(logits).all():
        raise ValueError("a temperature is fitted on one or more rows of finite logits")
    wide = np.asarray(logits, np.float64)
    of_label = wide[np.arange(len(wide)), labels]

    def slope(log_temperature: float) -> float:
        precision = np.exp(-log_temperature)
        expected = (softmax(wide * precision) * wide).sum(axis=1)
        return float(-precision * (expected - of_label).sum() + log_temperature / prior_sd**2)

    low, high = LOG_TEMPERATURE_RANGE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def lac_threshold(probabilities: Floats, labels: Labels, alpha: float) -> float:
    """The smallest probability a label may have in a prediction set of coverage 1 − alpha.

    Split conformal prediction with the LAC score 1 − p_y (Sadinle et al. 2019). probabilities (N, C), labels (N,).
    Raises ValueError when N is too small for alpha.
    """
    n = len(labels)
    rank = int(np.ceil((n + 1) * (1 - alpha)))
    if rank > n:
        raise ValueError(f"coverage {1 - alpha:g} needs {int(np.ceil(1 / alpha)) - 1} held-out images, there are {n}")
    # The rank-th smallest score belongs to the rank-th largest probability; 1 − (1 − p) need not be p again.
    return float(np.partition(probabilities[np.arange(n), labels], n - rank)[n - rank])


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """Mean over images, in nats."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def brier_score(probabilities: Floats, labels: Labels) -> float:
    """Mean over images of the squared distance to the label's indicator (Brier 1950), in [0, 2]."""
    distance = probabilities.astype(np.float64)
    distance[np.arange(len(labels)), labels] -= 1
    return float((distance**2).sum(axis=1).mean())


def expected_calibration_error(confidences: Floats, correct: Bools, bins: int = BINS) -> float:
    """Mean gap of confidence and accuracy over equal-width bins (k/bins, (k+1)/bins] (Guo et al. 2017, equation 3).

    confidences (N,) of the top label; correct (N,), whether that label is right.
    """
    # Compared, not multiplied: rounding would move a confidence just above an edge into the bin below.
    index = np.searchsorted(np.arange(1, bins) / bins, confidences.astype(np.float64), side="left")
    gaps = np.bincount(index, weights=correct - confidences.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


@dataclass(frozen=True)
class Null:
    """What a perfectly calibrated model with these confidences would score by sampling noise alone."""

    mean: float
    p95: float
    p99: float


def calibration_error_null(confidences: Floats, draws: int = 1000, seed: int = 0) -> Null:
    """The ECE with labels redrawn from the model's own confidences (N,)."""
    rng = np.random.default_rng(seed)
    errors = [expected_calibration_error(confidences, rng.random(len(confidences)) < confidences) for _ in range(draws)]
    return Null(float(np.mean(errors)), *(float(value) for value in np.percentile(errors, (95, 99))))
