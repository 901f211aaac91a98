"""export.evidence: every figure of calibration.json that is measured is the plain computation's."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from export.evidence import POINTS, SEED, Evidence, measure
from export.nulls import DRAWS, nulls, redrawn
from export.scoring import METRICS
from service.calibration import Floats, Labels, softmax
from service.documents import Bins, ClassFigures, Metrics, RiskPoint
from tests.draws import exaggerated

pytestmark = pytest.mark.slow

NAMES = ["cat", "dog", "owl", "cow"]
BINS = 15


def drawn(n: int = 400, seed: int = 0) -> tuple[Floats, Floats, Labels]:
    """Raw and calibrated probabilities, and labels."""
    logits, labels = exaggerated(n, len(NAMES), 2.5, np.random.default_rng(seed))
    return softmax(logits), softmax(logits / 2.5), labels


RAW, CALIBRATED, LABELS = drawn()
FOUND = measure(RAW, CALIBRATED, LABELS, NAMES)


def plain_ece(confidences: Floats, correct: Floats) -> float:
    error = 0.0
    for k in range(BINS):
        inside = (confidences > k / BINS) & (confidences <= (k + 1) / BINS)
        error += abs(float((correct[inside] - confidences[inside]).sum()))
    return error / len(confidences)


@pytest.mark.parametrize(("which", "p"), [("before", RAW), ("after", CALIBRATED)])
def test_figures_are_those_of_the_definitions(which: str, p: Floats) -> None:
    """Before and after, each from its own probabilities."""
    figures = getattr(FOUND.metrics, which)
    rows = np.arange(len(p))
    correct = (p.argmax(1) == LABELS).astype(float)
    assert figures.n == len(p)
    assert figures.accuracy == pytest.approx(correct.mean(), abs=1e-12)
    assert figures.nll == pytest.approx(-np.log(p[rows, LABELS]).mean(), abs=1e-12)
    assert figures.brier == pytest.approx(((p - np.eye(len(NAMES))[LABELS]) ** 2).sum(1).mean(), abs=1e-12)
    assert figures.ece_15 == pytest.approx(plain_ece(p.max(1), correct), abs=1e-12)
    of_classes = [plain_ece(p[:, k], np.equal(LABELS, k).astype(float)) for k in range(len(NAMES))]
    assert figures.classwise_ece_15 == pytest.approx(np.mean(of_classes), abs=1e-12)
    assert figures.uncertainty == pytest.approx(correct.mean() * (1 - correct.mean()), abs=1e-12)
    for name, metric in METRICS.items():
        assert getattr(figures, name) == metric(p, LABELS[None])[0]


def test_nulls_are_those_of_the_calibrated_probabilities() -> None:
    """Mean and percentiles of each metric that has one, by labels drawn from them."""
    names = ("ece_15", "classwise_ece_15", "equal_mass_ece_15", "top_label_ece_15", "smooth_ece")
    expected = nulls(CALIBRATED, {name: METRICS[name] for name in names}, DRAWS, SEED)
    told = FOUND.metrics.null.model_dump()
    assert told == {
        f"{name}_{part}": getattr(null, part) for name, null in expected.items() for part in ("mean", "p95", "p99")
    }
    assert told["ece_15_mean"] < told["ece_15_p95"] < told["ece_15_p99"]


@pytest.mark.parametrize(("which", "p"), [("before", RAW), ("after", CALIBRATED)])
def test_bins_hold_each_image_once(which: str, p: Floats) -> None:
    """How many, how sure the model was of them and how many were right; nothing is said of none."""
    bins = getattr(FOUND.bins, which)
    confidences, correct = p.max(1), p.argmax(1) == LABELS
    assert len(bins) == BINS
    assert sum(each.n for each in bins) == len(p)
    for k, each in enumerate(bins):
        inside = (confidences > k / BINS) & (confidences <= (k + 1) / BINS)
        assert (each.low, each.high, each.n) == (k / BINS, (k + 1) / BINS, inside.sum())
        if not inside.any():
            assert each.confidence is each.accuracy is each.null_low is each.null_high is None
            continue
        assert each.confidence == pytest.approx(confidences[inside].mean(), abs=1e-12)
        assert each.accuracy == pytest.approx(correct[inside].mean(), abs=1e-12)
        chance = [
            np.mean(p.argmax(1)[inside] == labels[inside]) for block in redrawn(p, DRAWS, SEED) for labels in block
        ]
        assert (each.null_low, each.null_high) == pytest.approx(np.percentile(chance, (0.5, 99.5)), abs=1e-12)


def test_the_curve_goes_from_the_surest_image_to_all() -> None:
    """Each point is what answering so many gives; coverages rise, confidences fall."""
    points = FOUND.risk_coverage
    confidences, wrong = CALIBRATED.max(1), CALIBRATED.argmax(1) != LABELS
    assert points[0].coverage == pytest.approx((confidences >= confidences.max()).mean())
    assert points[-1].coverage == 1
    assert len(points) == POINTS
    for point in points:
        answered = confidences >= point.confidence - 1e-12
        assert point.coverage == pytest.approx(answered.mean(), abs=1e-9)
        assert point.risk == pytest.approx(wrong[answered].mean(), abs=1e-9)
    for one, further in pairwise(points):
        assert one.coverage < further.coverage
        assert one.confidence > further.confidence


def test_the_curve_of_few_confidences_is_short() -> None:
    """A point for each that occurs, no more."""
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8], [0.6, 0.4]])
    points = measure(p, p, np.array([0, 1, 1, 0]), NAMES[:2]).risk_coverage
    assert points == [
        RiskPoint(coverage=0.25, risk=0.0, confidence=0.8),
        RiskPoint(coverage=1.0, risk=0.25, confidence=0.6),
    ]


def test_classes_are_told_by_their_names() -> None:
    """How many there are, how many are found, and how far its probability is off beside what chance gives."""
    assert [each.label for each in FOUND.classes] == NAMES
    predicted = CALIBRATED.argmax(1)
    for k, each in enumerate(FOUND.classes):
        of = np.equal(LABELS, k)
        assert each.n == of.sum()
        assert each.recall == pytest.approx((predicted[of] == k).mean(), abs=1e-12)
        assert each.ece == pytest.approx(plain_ece(CALIBRATED[:, k], of.astype(float)), abs=1e-12)
        chance = [
            plain_ece(CALIBRATED[:, k], (labels == k).astype(float))
            for block in redrawn(CALIBRATED, DRAWS, SEED)
            for labels in block
        ]
        assert each.ece_null_p99 == pytest.approx(np.percentile(chance, 99), abs=1e-9)


def test_a_class_that_nobody_is_of_is_told_too() -> None:
    """With no images and no recall, not with a division by zero; so with one that is never predicted."""
    p = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    classes = measure(p, p, np.array([0, 1]), NAMES[:3]).classes
    assert [(each.n, each.recall) for each in classes] == [(1, 1.0), (1, 0.0), (0, 0.0)]


def test_the_confusion_matrix_counts_each_image_once() -> None:
    """Rows are what images show, columns what they are taken for."""
    expected = np.zeros((len(NAMES), len(NAMES)), int)
    for label, guess in zip(LABELS, CALIBRATED.argmax(1), strict=True):
        expected[label, guess] += 1
    assert FOUND.confusion == expected.tolist()


def document(found: Evidence) -> str:
    told = {
        "metrics": found.metrics.model_dump(mode="json"),
        "bins": found.bins.model_dump(mode="json"),
        "risk_coverage": [point.model_dump(mode="json") for point in found.risk_coverage],
        "classes": [each.model_dump(mode="json") for each in found.classes],
        "confusion": found.confusion,
    }
    return json.dumps(told, allow_nan=False)


def test_it_can_be_written_and_read() -> None:
    """As JSON, valid against the schema, and the same again."""
    told = json.loads(document(FOUND))
    assert Metrics.model_validate(told["metrics"]) == FOUND.metrics
    assert Bins.model_validate(told["bins"]) == FOUND.bins
    assert [RiskPoint.model_validate(each) for each in told["risk_coverage"]] == FOUND.risk_coverage
    assert [ClassFigures.model_validate(each) for each in told["classes"]] == FOUND.classes
    assert told["confusion"] == FOUND.confusion


def test_float32_can_be_written_as_well() -> None:
    """As a graph answers; rows that are a little more than 1 included."""
    p = np.array([[np.float32(1.0000001), 0], [0.25, 0.75], [0.5, 0.5]], np.float32)
    found = measure(p, p, np.array([0, 1, 1]), NAMES[:2])
    assert found.risk_coverage[0].confidence == 1
    assert json.loads(document(found))["metrics"]["after"]["n"] == 3


def test_it_is_the_same_again() -> None:
    """Chance is drawn from a fixed seed."""
    assert measure(RAW, CALIBRATED, LABELS, NAMES) == FOUND
    other = measure(*drawn(seed=1), NAMES)
    assert other.metrics != FOUND.metrics
    assert replace(other, metrics=FOUND.metrics) != FOUND
