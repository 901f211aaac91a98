"""What the test set says of a calibration: every figure of calibration.json that is measured rather than fitted."""

from dataclasses import dataclass

import numpy as np

from export.nulls import DRAWS, nulls, redrawn
from export.reliability import confusion_matrix, reliability_bins, risk_coverage
from export.scoring import METRICS, class_errors, scores
from service.calibration import Floats, Labels
from service.documents import Bin, Bins, ClassFigures, Figures, Metrics, NullFigures, RiskPoint

# Of the risk–coverage curve, for a picture needs no more.
POINTS = 101
SEED = 0


@dataclass(frozen=True)
class Evidence:
    """Members of service.documents.Calibration, by their names there."""

    metrics: Metrics
    bins: Bins
    risk_coverage: list[RiskPoint]
    classes: list[ClassFigures]
    confusion: list[list[int]]


def measure(raw: Floats, calibrated: Floats, labels: Labels, names: list[str]) -> Evidence:
    """Probabilities (N, C) before and after calibration against labels (N,) of classes with these names."""
    # The softmax of float32 may come out a little above 1.
    raw, calibrated = (np.minimum(probabilities, 1) for probabilities in (raw, calibrated))
    found = {
        f"{name}_{part}": getattr(null, part)
        for name, null in nulls(calibrated, {name: METRICS[name] for name in NULLED}, seed=SEED).items()
        for part in ("mean", "p95", "p99")
    }
    return Evidence(
        Metrics(before=_figures(raw, labels), after=_figures(calibrated, labels), null=NullFigures(**found)),
        Bins(before=_bins(raw, labels), after=_bins(calibrated, labels)),
        _risk_coverage(calibrated, labels),
        _classes(calibrated, labels, names),
        confusion_matrix(calibrated, labels).tolist(),
    )


NULLED = ("ece_15", "classwise_ece_15", "equal_mass_ece_15", "top_label_ece_15", "smooth_ece")


def _figures(probabilities: Floats, labels: Labels) -> Figures:
    accuracy = float((probabilities.argmax(1) == labels).mean())
    return Figures(n=len(labels), accuracy=accuracy, **scores(probabilities, labels))


def _bins(probabilities: Floats, labels: Labels) -> list[Bin]:
    return [
        Bin(
            low=found.low,
            high=found.high,
            n=found.n,
            confidence=found.confidence,
            accuracy=found.accuracy,
            null_low=found.null[0] if found.null else None,
            null_high=found.null[1] if found.null else None,
        )
        for found in reliability_bins(probabilities, labels, seed=SEED)
    ]


def _risk_coverage(probabilities: Floats, labels: Labels) -> list[RiskPoint]:
    """Evenly over the coverages, the first and the last included."""
    curve = risk_coverage(probabilities, labels)
    places = np.unique(np.searchsorted(curve.coverages, np.linspace(curve.coverages[0], 1, POINTS)))
    return [
        RiskPoint(coverage=curve.coverages[i], risk=curve.risks[i], confidence=curve.thresholds[i])
        for i in np.minimum(places, len(curve.coverages) - 1)
    ]


def _classes(probabilities: Floats, labels: Labels, names: list[str]) -> list[ClassFigures]:
    errors = class_errors(probabilities, labels[None])[0]
    chance = np.concatenate([class_errors(probabilities, drawn) for drawn in redrawn(probabilities, DRAWS, SEED)])
    bounds = np.percentile(chance, 99, axis=0)
    sizes = np.bincount(labels, minlength=len(names))
    hits = np.bincount(labels[probabilities.argmax(1) == labels], minlength=len(names))
    recalls = hits / np.maximum(sizes, 1)
    return [
        ClassFigures(label=name, n=int(sizes[k]), recall=recalls[k], ece=errors[k], ece_null_p99=bounds[k])
        for k, name in enumerate(names)
    ]
