"""What calibrated probabilities must prove before anybody is given them.

CalibrationError
├── SplitError        the same images fitted on and measured on
├── CalibratorError   a calibrator that is none: constant, not finite, a negative temperature
└── GateError         figures beyond their bounds

Each says what to do about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from export.nulls import AT_ONCE, nulls
from export.scoring import METRICS
from service.calibration import Floats, Labels
from service.calibrators import KEEPS_ORDER, Params

RESAMPLES = 1000
POSITIVE = ("temperature", "a", "b", "weights")
TEMPERATURES = (0.05, 20.0)
# Confidences closer together than this say the same about every image.
LEAST_SPREAD = 1e-6
# Of a variant, against what it was made from.
ACCURACY_LOSS = 0.003
GATED = ("ece_15", "classwise_ece_15")
REMEDIES = {
    "nll": "record the method as identity, or fit on more images",
    "brier": "record the method as identity, or fit on more images",
    "ece_15": "fit on more images or let another method be chosen; see that both splits are drawn alike",
    "classwise_ece_15": "fit on more images or opt into vector scaling; see that both splits are drawn alike",
    "accuracy_loss": "serve the network as it was trained: this one does not bear so few bits",
    "argmax": "use a method of KEEPS_ORDER, or opt into one that may change answers",
}


class CalibrationError(ValueError):
    """Calibrated probabilities that must not be given to anybody."""


class SplitError(CalibrationError):
    pass


class CalibratorError(CalibrationError):
    pass


@dataclass(frozen=True)
class Verdict:
    """One gate: the figure may not exceed the bound. `sentence` says the same in words."""

    name: str
    figure: float
    bound: float
    passed: bool
    sentence: str


class GateError(CalibrationError):
    """Tells every failed gate with its figures and its remedy, after `introduction`."""

    def __init__(self, failed: Sequence[Verdict], introduction: str = "") -> None:
        super().__init__(
            introduction + "\n".join(f"{verdict.sentence}: {REMEDIES[verdict.name]}" for verdict in failed)
        )
        self.failed = tuple(failed)


def require(verdicts: Sequence[Verdict], introduction: str = "") -> None:
    """Raises GateError, which begins with `introduction`, unless every gate is passed."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        raise GateError(failed, introduction)


def improvement(raw: Floats, calibrated: Floats, labels: Labels, seed: int = 0) -> tuple[Verdict, Verdict]:
    """Gate 1, NLL and Brier: neither may be worse than before on images (N, C), (N,) that nothing was fitted on.

    The figure is the 95 % upper bound of calibrated − raw by the paired percentile bootstrap (Efron 1979, 1,000
    resamples of images); the bound is 0. Where it fails, the method is recorded as identity.
    """
    gains = _losses(calibrated, labels) - _losses(raw, labels)
    uppers = np.percentile(_resampled_means(gains, seed), 95, axis=1)
    nll, brier = (
        _verdict(
            name, float(upper), 0.0, f"{title}, calibrated − raw, is {gain.mean():+.2g} and may be {upper:+.2g} (95 %)"
        )
        for name, title, upper, gain in zip(("nll", "brier"), ("NLL", "Brier score"), uppers, gains, strict=True)
    )
    return nll, brier


def calibration(calibrated: Floats, labels: Labels, seed: int = 0) -> tuple[Verdict, Verdict]:
    """Gates 2 and 3: ECE-15 and classwise ECE at most the 99th percentile of the model's own null (1,000 draws).

    calibrated (N, C), labels (N,) of images that nothing was fitted on.
    """
    metrics = {name: METRICS[name] for name in GATED}
    bounds = nulls(calibrated, metrics, seed=seed)
    top, classwise = (
        _verdict(
            name,
            figure := float(metric(calibrated, labels[None])[0]),
            bounds[name].p99,
            f"{title} is {figure:.3%}, by chance alone it would be at most {bounds[name].p99:.3%} (99 %)",
        )
        for (name, metric), title in zip(metrics.items(), ("ECE-15", "classwise ECE"), strict=True)
    )
    return top, classwise


def argmax_kept(method: str, logits: Floats, calibrated: Floats) -> Verdict:
    """Gate 4: no answer changes, for the methods that promise it. logits, calibrated (N, C).

    An answer has changed where the class of the largest logit is less probable than another.
    """
    best = np.take_along_axis(calibrated, logits.argmax(1)[:, None], 1)[:, 0]
    changed = int((best < calibrated.max(1)).sum())
    bound = 0.0 if method in KEEPS_ORDER else float("inf")
    return _verdict("argmax", float(changed), bound, f"{changed} of {len(logits)} answers changed by {method}")


def accuracy_kept(before: float, after: float) -> Verdict:
    """Gate 5, of variants: on the same images, the accuracy is at most 0.3 points lower than before."""
    return _verdict(
        "accuracy_loss", round(before - after, 9), ACCURACY_LOSS, f"the accuracy went from {before:.2%} to {after:.2%}"
    )


def check_parameters(params: Params) -> None:
    """Raises CalibratorError unless all are finite, T is in [0.05, 20], a, b and weights positive and R rises."""
    for name, value in params.items():
        if not np.isfinite(value).all():
            raise CalibratorError(f"{name} is not finite: the fit went wrong, look for odd logits")
        if name in POSITIVE and not np.min(value) > 0:
            raise CalibratorError(f"{name} is {value}: it must be positive, or the least likely class comes first")
    low, high = TEMPERATURES
    temperature = params.get("temperature", 1.0)
    if not low <= np.min(temperature) <= high:
        raise CalibratorError(f"a temperature of {temperature:g} is outside [{low:g}, {high:g}]: are these logits?")
    if "knots" in params:
        _check_curve(np.asarray(params["knots"]), np.asarray(params["values"]))


def check_spread(raw: Floats, calibrated: Floats) -> None:
    """Raises CalibratorError if a confidence that told images apart has become one constant. Both (N, C).

    The constant that equals the accuracy has no calibration error and says nothing.
    """
    before, after = (float(np.ptp(p.max(1))) for p in (raw, calibrated))
    if after < LEAST_SPREAD <= before:
        raise CalibratorError(
            f"the calibrated confidence is {calibrated.max():.4f} for every image: it tells nothing about any of them"
        )


def check_disjoint(splits: Mapping[str, Sequence[int] | Sequence[str] | npt.NDArray[np.integer] | str]) -> None:
    """Raises SplitError if two splits share an image.

    Each split is its images, by index into one data set or by digest, or the digest of the whole split.
    """
    members = {name: {split} if isinstance(split, str) else set(split) for name, split in splits.items()}
    for (left, images), (right, others) in combinations(members.items(), 2):
        shared = len(images & others)
        if shared and {left, right} == {"fit", "test"}:
            raise SplitError(
                f"the calibrator was fitted on the test split ({_amount(shared, splits[left])}): "
                "its figures there mean nothing; fit on images held back from training"
            )
        if shared:
            raise SplitError(f"{left} and {right} share {_amount(shared, splits[left])}: make the splits disjoint")


def _check_curve(knots: Floats, values: Floats) -> None:
    rising = len(knots) == len(values) and (np.diff(knots) > 0).all() and (np.diff(values) > 0).all()
    if not (rising and knots[0] == 0 and knots[-1] == 1 and values[0] >= 0 and values[-1] <= 1):
        raise CalibratorError("the isotonic map must rise strictly, from a knot at 0 to a knot at 1, within [0, 1]")


def _losses(p: Floats, labels: Labels) -> Floats:
    """−ln p_y and the Brier score of each image. (N, C), (N,) → (2, N)."""
    wide, rows = np.asarray(p, np.float64), np.arange(len(labels))
    of_label = wide[rows, labels]
    squared = (wide**2).sum(1) - 2 * of_label + 1
    return np.stack([-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)), squared])


def _resampled_means(values: Floats, seed: int) -> Floats:
    """Means of rows of images drawn with replacement, the same for each row of values. (R, N) → (R, 1000)."""
    rng, n = np.random.default_rng(seed), values.shape[1]
    blocks = [rng.integers(0, n, (AT_ONCE, n)) for _ in range(RESAMPLES // AT_ONCE)]
    return np.concatenate([values[:, block].mean(-1) for block in blocks], axis=1)


def _verdict(name: str, figure: float, bound: float, sentence: str) -> Verdict:
    return Verdict(name, figure, bound, figure <= bound, sentence)


def _amount(shared: int, split: object) -> str:
    return "all of their images" if isinstance(split, str) else f"{shared} images"
