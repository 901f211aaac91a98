"""export.nulls: what chance alone would cost, for every figure."""

import time

import numpy as np
import pytest
from scipy.stats import chisquare

from export.nulls import nulls, redrawn
from export.scoring import METRICS, scores
from service.calibration import Floats, calibration_error_null, softmax
from tests.draws import draw, honest_logits


def probabilities(n: int, classes: int = 4, seed: int = 0) -> Floats:
    return softmax(honest_logits(n, classes, np.random.default_rng(seed)))


def test_labels_come_from_the_whole_vector() -> None:
    """Of one image's redrawn labels each class has its share (χ² at 1e-4); a class of probability 0 none."""
    p = np.array([[0.1, 0.0, 0.25, 0.65], [0.0, 0.5, 0.5, 0.0]])
    labels = np.concatenate(list(redrawn(p, 20_000, seed=3)))
    assert labels.shape == (20_000, 2)
    for column, row in zip(labels.T, p, strict=True):
        counts = np.bincount(column, minlength=4)
        assert (counts[row == 0] == 0).all()
        assert chisquare(counts[row > 0], 20_000 * row[row > 0]).pvalue > 1e-4


def test_images_are_redrawn_apart_from_each_other() -> None:
    """Two images of the same probabilities do not get the same labels."""
    labels = np.concatenate(list(redrawn(np.full((2, 2), 0.5), 4000, seed=0)))
    assert (labels[:, 0] == labels[:, 1]).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("draws", [1, 100, 250])
def test_there_are_as_many_labellings_as_asked_for(draws: int) -> None:
    """In blocks of at most 100; rows of float32 that do not sum to 1 are no trouble."""
    blocks = list(redrawn(probabilities(50).astype(np.float32), draws, seed=0))
    assert sum(map(len, blocks)) == draws
    assert max(map(len, blocks)) <= 100
    assert all(((block >= 0) & (block < 4)).all() for block in blocks)


def test_the_top_labels_null_is_service_calibrations() -> None:
    """Redrawing labels or only whether the top one is right gives the same ECE, to the noise of 2,000 draws."""
    p = probabilities(800)
    ours, theirs = nulls(p, {"ece_15": METRICS["ece_15"]}, draws=2000)["ece_15"], calibration_error_null(p.max(1), 2000)
    assert (ours.mean, ours.p95, ours.p99) == pytest.approx((theirs.mean, theirs.p95, theirs.p99), rel=0.04)


@pytest.mark.slow
def test_percentiles_are_what_they_are_called() -> None:
    """Of a calibrated model's fresh figures 95 and 99 in 100 lie below p95 and p99, for every metric."""
    p, rng = probabilities(150), np.random.default_rng(1)
    bounds = nulls(p, draws=3000)
    fresh = np.stack([draw(p, rng) for _ in range(3000)])
    for name, null in bounds.items():
        figures = METRICS[name](p, fresh)
        assert (figures <= null.p95 + 1e-12).mean() == pytest.approx(0.95, abs=0.02), name
        assert (figures <= null.p99 + 1e-12).mean() == pytest.approx(0.99, abs=0.01), name
        assert figures.mean() == pytest.approx(null.mean, rel=0.05), name


def test_overconfidence_lies_far_outside() -> None:
    """Every error of calibration of a model that doubles its logits exceeds its own p99."""
    rng = np.random.default_rng(2)
    logits = honest_logits(3000, 4, rng)
    p = softmax(2 * logits)
    figures, bounds = scores(p, draw(softmax(logits), rng)), nulls(p, draws=200)
    gauges = ("nll", "ece_15", "classwise_ece_15", "equal_mass_ece_15", "top_label_ece_15", "smooth_ece", "reliability")
    assert all(figures[name] > bounds[name].p99 for name in gauges)


def test_the_same_seed_gives_the_same_null() -> None:
    """And another seed another."""
    p = probabilities(200)
    assert nulls(p, draws=50, seed=4) == nulls(p, draws=50, seed=4) != nulls(p, draws=50, seed=5)


@pytest.mark.slow
def test_ten_thousand_images_take_less_than_twenty_seconds() -> None:
    """1,000 labellings of 10,000 images in ten classes, all metrics, in CPU time of this process."""
    p = probabilities(10_000, classes=10)
    start = time.process_time()
    bounds = nulls(p)
    assert time.process_time() - start < 20
    assert bounds.keys() == METRICS.keys()
