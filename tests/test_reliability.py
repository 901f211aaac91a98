"""export.reliability: diagrams are counts, and their intervals are chance."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as oracle_confusion

from export.reliability import confusion_matrix, reliability_bins, risk_coverage
from export.scoring import aurc
from service.calibration import Floats, Labels, expected_calibration_error, softmax
from tests.draws import draw, honest_logits


def model(n: int, exaggeration: float = 1.0, classes: int = 4, seed: int = 0) -> tuple[Floats, Labels]:
    rng = np.random.default_rng(seed)
    logits = honest_logits(n, classes, rng)
    return softmax(logits * exaggeration), draw(softmax(logits), rng)


def test_bins_add_up_to_the_calibration_error() -> None:
    """Σ n/N |accuracy − confidence| over the bins is the ECE; every image is in one."""
    p, labels = model(2000, 2.0)
    bins = reliability_bins(p, labels, draws=10)
    assert [b.low for b in bins] == pytest.approx(np.arange(15) / 15)
    assert [b.high for b in bins] == pytest.approx(np.arange(1, 16) / 15)
    assert sum(b.n for b in bins) == 2000
    filled = [(b.n, b.accuracy, b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None]
    error = sum(n * abs(accuracy - confidence) for n, accuracy, confidence in filled) / 2000
    assert error == pytest.approx(expected_calibration_error(p.max(1), p.argmax(1) == labels), abs=1e-12)


def test_a_bin_without_images_says_nothing() -> None:
    """Four classes have no confidence below 1/4: those bins are None rather than 0."""
    bins = reliability_bins(*model(500), draws=10)
    assert [(b.n, b.confidence, b.accuracy, b.null) for b in bins[:3]] == [(0, None, None, None)] * 3
    assert all(b.accuracy is not None for b in bins[5:])


@pytest.mark.slow
def test_intervals_hold_what_chance_gives() -> None:
    """Of calibrated models' bins about 99 in 100 lie in their interval; an overconfident one's mostly do not."""
    inside = {1.0: [], 2.0: []}  # type: dict[float, list[bool]]
    for exaggeration, found in inside.items():
        for seed in range(60):
            for b in reliability_bins(*model(600, exaggeration, seed=seed), draws=1000):
                if b.null is not None and b.accuracy is not None and b.n >= 30:
                    found.append(b.null[0] <= b.accuracy <= b.null[1])
    assert np.mean(inside[1.0]) == pytest.approx(0.99, abs=0.01)
    assert np.mean(inside[2.0]) < 0.6


def test_the_risk_coverage_curve_is_counting() -> None:
    """At each confidence that occurs: how many answers reach it and how many of those are wrong."""
    p, labels = model(300)
    p = p.round(1)
    curve = risk_coverage(p, labels)
    confidences, wrong = p.max(1), p.argmax(1) != labels
    assert sorted(set(confidences), reverse=True) == curve.thresholds.tolist()
    for threshold, coverage, risk in zip(curve.thresholds, curve.coverages, curve.risks, strict=True):
        answered = confidences >= threshold
        assert (coverage, risk) == pytest.approx((answered.mean(), wrong[answered].mean()))
    assert (curve.coverages[-1], curve.risks[-1]) == (1, wrong.mean())


def test_the_area_is_the_curves_where_no_confidence_occurs_twice() -> None:
    """The mean of the risks is aurc."""
    p, labels = model(400)
    assert risk_coverage(p, labels).risks.mean() == pytest.approx(aurc(p, labels[None])[0], abs=1e-12)


def test_confusions_are_scikit_learns() -> None:
    """Truth in rows, answers in columns, classes that never occur included."""
    p, labels = model(500)
    assert (confusion_matrix(p, labels) == oracle_confusion(labels, p.argmax(1), labels=range(4))).all()
    assert confusion_matrix(np.array([[0.1, 0.9, 0.0]]), np.array([0])).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
