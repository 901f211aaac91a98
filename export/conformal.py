"""What prediction sets and abstention promise, and with what certainty. service.calibration fits the sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, betabinom

from export.gates import CalibrationError
from service.calibration import Bools, Floats

# 2 in 1,000 sound thresholds fall outside the bounds of their coverage.
LEVEL = 0.998
# Of the images, so many are to be answered where a greater risk may be promised instead.
ANSWERED = 0.5
# Shares of images to answer that are tried, without a look at the labels.
COVERAGES = (
    1,
    0.995,
    0.99,
    0.98,
    0.97,
    0.96,
    0.95,
    0.925,
    0.9,
    0.875,
    0.85,
    0.8,
    0.75,
    0.7,
    0.6,
    0.5,
    0.4,
    0.3,
    0.2,
    0.1,
)


class RiskError(CalibrationError):
    """A risk so small that no threshold is known to keep it."""


@dataclass(frozen=True)
class Risk:
    """Of images with at least `threshold` confidence, at most the share `bound` is answered wrongly.

    coverage: the share of the images it was found on that are answered, in (0, 1].
    """

    threshold: float
    coverage: float
    bound: float


def coverage_bounds(alpha: float, n: int, m: int, level: float = LEVEL) -> tuple[float, float]:
    """Between which shares of m fresh images prediction sets cover the label, in `level` of all splits.

    For the threshold of n images of coverage 1 − alpha (service.calibration.lac_threshold) the number covered is
    beta-binomial (Vovk 2012; Angelopoulos & Bates 2023, section 3.2), where no two scores are equal; ties cover more.
    """
    rank = int(np.ceil((n + 1) * (1 - alpha)))
    if rank > n:
        raise ValueError(f"coverage {1 - alpha:g} needs {int(np.ceil(1 / alpha)) - 1} held-out images, there are {n}")
    low, high = betabinom(m, rank, n + 1 - rank).ppf([(1 - level) / 2, (1 + level) / 2]) / m
    return float(low), float(high)


def risk_control(confidences: Floats, correct: Bools, risk: float, delta: float) -> Risk:
    """Selection with guaranteed risk (Geifman & El-Yaniv 2017, theorem 3.2): the lowest threshold known to keep it.

    confidences (N,), correct (N,) of images that nothing was fitted on. Each threshold of COVERAGES is held to its
    binomial bound of certainty 1 − delta / 20, so that with certainty 1 − delta none of the bounds is broken. The
    paper bisects instead, as if the bound fell with coverage all the way; it rises again when few images are left.
    Raises RiskError where no threshold keeps `risk`.
    """
    share = delta / len(COVERAGES)
    for threshold in np.quantile(confidences, 1 - np.array(COVERAGES), method="higher"):
        answered = confidences >= threshold
        bound = binomial_bound(int((answered & ~correct).sum()), int(answered.sum()), share)
        if bound <= risk:
            return Risk(float(threshold), float(answered.mean()), bound)
    raise RiskError(_unreachable(len(confidences), risk, share))


def least_risk(confidences: Floats, correct: Bools, risks: Sequence[float], delta: float) -> tuple[float, Risk]:
    """The first of these risks that can be kept while half of the images or more are answered; else the last.

    That one may be chosen by what is found, for all bounds of `risk_control` hold together. Raises RiskError.
    """
    for risk in risks[:-1]:
        try:
            found = risk_control(confidences, correct, risk, delta)
        except RiskError:
            continue
        if found.coverage >= ANSWERED:
            return risk, found
    return risks[-1], risk_control(confidences, correct, risks[-1], delta)


def binomial_bound(errors: int, n: int, delta: float) -> float:
    """The error rate that so few errors among n exclude with certainty 1 − delta (Clopper & Pearson 1934)."""
    return 1.0 if errors >= n else float(beta.ppf(1 - delta, errors + 1, n - errors))


def _unreachable(n: int, risk: float, delta: float) -> str:
    flawless = int(np.ceil(np.log(delta) / np.log1p(-risk)))
    return (
        f"no confidence keeps the risk of a wrong answer at {risk:g} on {n} images: that takes {flawless} answers "
        "without an error, or more with some; promise a greater risk, hold back more images or train a better network"
    )
