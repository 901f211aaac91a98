"""export.scoring and export.smoothing: every figure is what independent code or a plain loop makes of it."""

from itertools import groupby, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcal.metrics import ECE
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from export.scoring import METRICS, aurc, bin_numbers, correct, murphy, scores, smooth_ece, tally
from export.smoothing import smooth_calibration_error
from service.calibration import (
    Bools,
    Floats,
    Labels,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)
from tests.draws import draw, honest_logits

# A model that exaggerates, one that is too modest, one that is right and one that only knows three levels.
MODELS = {"overconfident": 2.0, "underconfident": 0.5, "honest": 1.0, "coarse": 1.0}


def model(kind: str, n: int = 1500, classes: int = 4) -> tuple[Floats, Labels]:
    rng = np.random.default_rng(sorted(MODELS).index(kind))
    logits = honest_logits(n, classes, rng)
    labels = draw(softmax(logits), rng)
    return softmax(np.round(logits / 4) * 2 if kind == "coarse" else logits * MODELS[kind]), labels


@pytest.mark.parametrize("kind", MODELS)
def test_likelihood_and_brier_are_scikit_learns(kind: str) -> None:
    """log_loss and the multi-class brier_score_loss, unscaled, to 1e-12; also service.calibration's to the bit."""
    p, labels = model(kind)
    found = scores(p, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, p, labels=range(4)), abs=1e-12)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, p, labels=range(4), scale_by_half=False), abs=1e-12)
    assert found["nll"] == negative_log_likelihood(p, labels)
    assert found["brier"] == brier_score(p, labels)


@pytest.mark.parametrize("kind", MODELS)
def test_calibration_errors_are_netcals(kind: str) -> None:
    """ECE; classwise, class by class as a binary problem; top-label, predicted class by predicted class: to 1e-12.

    But for confidences exactly on an edge, of which there are none here: those netcal counts to the bin above.
    """
    p, labels = model(kind)
    found, right, top = scores(p, labels), p.argmax(1) == labels, p.argmax(1)

    def oracle(confidences: Floats, hits: Bools) -> float:
        return float(ECE(bins=15).measure(confidences, hits.astype(int)))

    assert found["ece_15"] == pytest.approx(ECE(bins=15).measure(p, labels), abs=1e-12)
    assert found["ece_15"] == expected_calibration_error(p.max(1), right)
    classwise = [oracle(p[:, k], labels == k) for k in range(4)]
    assert found["classwise_ece_15"] == pytest.approx(np.mean(classwise), abs=1e-12)
    by_label = [oracle(p.max(1)[top == k], right[top == k]) * (top == k).mean() for k in range(4) if (top == k).any()]
    assert found["top_label_ece_15"] == pytest.approx(sum(by_label), abs=1e-12)


def test_equal_mass_bins_hold_equally_many_images() -> None:
    """15 slices of the sorted confidences, where no two are the same."""
    p, labels = model("overconfident")
    order = np.argsort(p.max(1))
    gap = (p.argmax(1) == labels) - p.max(1)
    looped = sum(abs(gap[part].sum()) for part in np.array_split(order, 15)) / len(order)
    assert scores(p, labels)["equal_mass_ece_15"] == pytest.approx(looped, abs=1e-12)


def test_equal_confidences_share_an_equal_mass_bin() -> None:
    """A constant confidence has one bin, whose gap is that of the whole."""
    p = np.tile([0.7, 0.3], (90, 1))
    labels = (np.arange(90) < 30).astype(int)
    assert scores(p, labels)["equal_mass_ece_15"] == pytest.approx(abs(60 / 90 - 0.7), abs=1e-12)


def kernel(t: Floats, centre: Floats, width: float) -> Floats:
    """The Gaussian reflected at 0 and 1 (Błasiok & Nakkiran 2023, definition 5), image by image. (T, N)."""
    images = [centre + 2 * k for k in range(-2, 3)] + [2 * k - centre for k in range(-2, 3)]
    return np.asarray(sum(norm.pdf(t[:, None], image, width) for image in images))


def direct_smooth_error(confidences: Floats, hits: Bools) -> float:
    """The paper's definition 7: the width that equals the error smoothed with it, by integration and bisection."""
    t = (np.arange(3000) + 0.5) / 3000

    def error(width: float) -> float:
        density = kernel(t, confidences, width) @ (confidences - hits) / len(confidences)
        return float(np.abs(density).mean())

    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return high


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_the_smooth_error_is_the_papers(kind: str) -> None:
    """Agrees with a direct integration of the reflected kernel to 2e-4."""
    p, labels = model(kind, n=120)
    direct = direct_smooth_error(p.max(1), p.argmax(1) == labels)
    assert scores(p, labels)["smooth_ece"] == pytest.approx(direct, abs=2e-4)


@pytest.mark.parametrize(("confidence", "accuracy"), [(0.5, 0.9), (0.9, 0.5), (1.0, 0.8), (0.7, 0.7)])
def test_the_smooth_error_of_one_confidence_is_its_gap(confidence: float, accuracy: float) -> None:
    """Smoothing moves a single gap but cannot shrink it."""
    hits = np.arange(1000) < accuracy * 1000
    found = smooth_calibration_error(np.full(1000, confidence), hits[None])
    assert found == pytest.approx([abs(confidence - accuracy)], abs=2e-4)


def test_the_smooth_error_is_continuous() -> None:
    """A nudge across a bin's edge moves the binned error by a tenth and the smooth one hardly."""
    labels = (np.arange(400) % 2).astype(int)
    below, above = (np.where(labels == 0, 0.6, 0.6 + step) for step in (0.0, 1e-9))
    both = [np.stack([confidence, 1 - confidence], axis=1) for confidence in (below, above)]
    binned = [scores(p, labels)["ece_15"] for p in both]
    smooth = [scores(p, labels)["smooth_ece"] for p in both]
    assert abs(binned[0] - binned[1]) > 0.1
    assert abs(smooth[0] - smooth[1]) < 1e-6


@pytest.mark.parametrize("kind", MODELS)
def test_murphys_terms_are_a_loop_over_bins(kind: str) -> None:
    """Agree to 1e-12; reliability − resolution + uncertainty is the Brier score of the binned confidences."""
    p, labels = model(kind)
    confidences, right = p.max(1), p.argmax(1) == labels
    pairs = sorted(zip(bin_numbers(confidences), confidences, right, strict=True))
    rel = res = binned = 0.0
    for _, group in groupby(pairs, key=lambda pair: int(pair[0])):
        _, confidence, hit = (np.array(column) for column in zip(*group, strict=True))
        rel += len(hit) * (confidence.mean() - hit.mean()) ** 2 / len(p)
        res += len(hit) * (hit.mean() - right.mean()) ** 2 / len(p)
        binned += ((confidence.mean() - hit) ** 2).sum() / len(p)
    found = [float(term[0]) for term in murphy(p, labels[None])]
    assert found == pytest.approx([rel, res, right.mean() * (1 - right.mean())], abs=1e-12)
    assert found[0] - found[1] + found[2] == pytest.approx(binned, abs=1e-12)
    assert [scores(p, labels)[name] for name in ("reliability", "resolution", "uncertainty")] == found


@given(st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.9]), st.booleans()), min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_the_area_under_the_risk_coverage_curve_is_the_mean_over_orders(pairs: list[tuple[float, bool]]) -> None:
    """Every order that sorts by confidence, tried in turn: the mean risk of the first i, averaged over i and orders."""
    areas = []
    for order in permutations(pairs):
        if list(order) == sorted(order, key=lambda pair: -pair[0]):
            wrong = np.array([not hit for _, hit in order], float)
            areas.append((wrong.cumsum() / np.arange(1, len(wrong) + 1)).mean())
    confidences = np.array([confidence for confidence, _ in pairs])
    labels = np.array([0 if hit else 1 for _, hit in pairs])
    p = np.stack([confidences, 1 - confidences], axis=1)
    assert aurc(p, labels[None])[0] == pytest.approx(np.mean(areas), abs=1e-12)


def test_the_area_rewards_knowing_where_one_errs() -> None:
    """Perfect order is less than chance, chance is the error rate, the worst order is more; AUROC ranks them alike."""
    rng = np.random.default_rng(0)
    labels = (np.arange(4000) < 400).astype(int)
    areas, aurocs = [], []
    for confidence in (0.9 - 0.3 * labels, rng.uniform(0.6, 0.9, 4000), 0.6 + 0.3 * labels):
        areas.append(float(aurc(np.stack([confidence, 1 - confidence], axis=1), labels[None])[0]))
        aurocs.append(roc_auc_score(labels == 0, confidence))
    assert areas[0] < areas[1] < areas[2]
    assert areas[1] == pytest.approx(0.1, abs=0.03)
    assert aurocs == sorted(aurocs, reverse=True)


@pytest.mark.parametrize("name", METRICS)
def test_many_labellings_are_scored_as_each_alone(name: str) -> None:
    """Row b of (B, N) labels gets the figure that it would get by itself, float32 probabilities too."""
    p, _ = model("honest", n=400)
    rng = np.random.default_rng(1)
    labels = np.stack([draw(p, rng) for _ in range(5)])
    together = METRICS[name](p, labels)
    assert together.shape == (5,)
    assert together == pytest.approx([METRICS[name](p, row[None])[0] for row in labels], abs=1e-12)
    assert len(set(together.tolist())) > 1
    assert METRICS[name](p.astype(np.float32), labels) == pytest.approx(together, abs=1e-3)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_order_of_images_and_classes_does_not_matter(name: str, kind: str) -> None:
    """Shuffling the images and renumbering the classes leaves every figure as it was."""
    p, labels = model(kind, n=600)
    p = p + np.arange(4) * 1e-9  # two equally likely classes have no order that could be kept
    rng = np.random.default_rng(2)
    images, classes = rng.permutation(600), rng.permutation(4)
    renumbered = p[images][:, np.argsort(classes)]
    ours, theirs = METRICS[name](p, labels[None]), METRICS[name](renumbered, classes[labels][images][None])
    assert theirs == pytest.approx(ours, abs=1e-9)


def test_a_perfect_model_has_no_error_at_all() -> None:
    """Certain and right: every figure is 0."""
    p = np.eye(4)[np.arange(100) % 4]
    assert scores(p, np.arange(100) % 4) == pytest.approx(dict.fromkeys(METRICS, 0.0), abs=1e-12)


def test_hits_are_counted_by_cell_and_labelling() -> None:
    """A table of counts, and which top labels are right."""
    hits = np.array([[True, True, False], [False, True, True]])
    assert tally(np.array([0, 0, 2]), hits, 3).tolist() == [[2, 0, 0], [1, 0, 1]]
    assert correct(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0, 0], [1, 1]])).tolist() == [
        [True, False],
        [False, True],
    ]


def test_the_smooth_error_is_a_metric_of_the_top_label() -> None:
    """The registry's entry feeds the top label's probability and whether it is right."""
    p, labels = model("overconfident", n=200)
    expected = smooth_calibration_error(p.max(1), (p.argmax(1) == labels)[None])
    assert smooth_ece(p, labels[None]) == expected
