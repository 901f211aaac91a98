"""export.conformal: sets are those of other libraries, and what is promised is kept as often as promised."""

import numpy as np
import pytest
from crepes import ConformalClassifier
from mapie.classification import SplitConformalClassifier
from scipy.stats import binom, binomtest
from sklearn.base import BaseEstimator, ClassifierMixin

from export.conformal import COVERAGES, RiskError, binomial_bound, coverage_bounds, least_risk, risk_control
from service.calibration import Bools, Floats, Labels, lac_threshold, softmax
from tests.draws import draw, exaggerated


def overconfident(n: int, seed: int = 0, classes: int = 5) -> tuple[Floats, Labels]:
    """Probabilities (N, C) that claim too much, and labels (N,)."""
    logits, labels = exaggerated(n, classes, 2.0, np.random.default_rng(seed))
    return softmax(logits), labels


class Network(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier, as MAPIE sees one, that is fed probabilities and passes them on."""

    def fit(self, p: Floats, labels: Labels) -> "Network":
        self.classes_, self.is_fitted_ = np.arange(p.shape[1]), True
        return self

    def predict_proba(self, p: Floats) -> Floats:
        return p

    def predict(self, p: Floats) -> Labels:
        return np.asarray(p.argmax(1))


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
def test_sets_are_mapies(alpha: float) -> None:
    """SplitConformalClassifier with the LAC score puts the same labels into every set."""
    (p, labels), (fresh, _) = overconfident(1000, 1), overconfident(1000, 2)
    network = Network().fit(p, labels)
    oracle = SplitConformalClassifier(network, confidence_level=1 - alpha, conformity_score="lac", prefit=True)
    _, sets = oracle.conformalize(p, labels).predict_set(fresh)
    ours = fresh >= lac_threshold(p, labels, alpha)
    assert 0 < ours.mean() < 1
    assert (ours == sets[:, :, 0]).all()


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
def test_sets_are_those_of_crepes(alpha: float) -> None:
    """ConformalClassifier without smoothing, fed 1 − p, puts the same labels into every set."""
    (p, labels), (fresh, _) = overconfident(1000, 3), overconfident(1000, 4)
    oracle = ConformalClassifier().fit(1 - p[np.arange(1000), labels])
    sets = oracle.predict_set(1 - fresh, confidence=1 - alpha, smoothing=False)
    assert ((fresh >= lac_threshold(p, labels, alpha)) == np.asarray(sets, bool)).all()


def test_the_bounds_of_coverage_are_the_published_ones() -> None:
    """[0.932, 0.965] for α = 0.05, 2,500 images fitted on and 5,000 counted."""
    assert coverage_bounds(0.05, 2500, 5000) == pytest.approx((0.932, 0.965), abs=5e-4)


def test_coverage_over_sixty_splits_is_within_its_bounds() -> None:
    """2,500 images for the threshold, 5,000 others to count: at most two of 60 splits fall outside, none by much."""
    low, high = coverage_bounds(0.05, 2500, 5000)
    p, labels = overconfident(7500 * 4, 5)
    rng, coverages = np.random.default_rng(6), []
    for _ in range(60):
        chosen = rng.permutation(len(labels))[:7500]
        of_label = p[chosen][np.arange(7500), labels[chosen]]
        threshold = lac_threshold(p[chosen[:2500]], labels[chosen[:2500]], 0.05)
        coverages.append((of_label[2500:] >= threshold).mean())
    outside = sum(not low <= coverage <= high for coverage in coverages)
    assert outside <= 2
    assert np.mean(coverages) == pytest.approx(0.95, abs=0.003)
    assert np.std(coverages) > 0.002


@pytest.mark.parametrize(("alpha", "n", "m"), [(0.1, 50, 200), (0.05, 500, 1000)])
def test_bounds_hold_as_often_as_they_say(alpha: float, n: int, m: int) -> None:
    """Of 4,000 splits with uniform scores the share outside is that of the level: 0.2 or 10 in 100."""
    scores = np.random.default_rng(7).random((4000, n + m))
    rank = int(np.ceil((n + 1) * (1 - alpha)))
    thresholds = np.sort(scores[:, :n], axis=1)[:, rank - 1]
    coverages = (scores[:, n:] <= thresholds[:, None]).mean(1)
    for level in (0.998, 0.9):
        low, high = coverage_bounds(alpha, n, m, level)
        inside = int(((coverages >= low) & (coverages <= high)).sum())
        # Both ends are steps of 1/m, so that somewhat more may lie inside.
        assert binom.cdf(inside, 4000, level) > 1e-4
        assert inside / 4000 < level + 3 * (1 - level) / 4 + 1e-9


@pytest.mark.slow
def test_bounds_of_the_fewest_images_are_those_of_the_largest_of_them() -> None:
    """19 images for 95 %: the share covered is distributed as the largest of 19 uniform numbers, u^(1/19)."""
    assert coverage_bounds(0.05, 19, 1_000_000, 0.9) == pytest.approx((0.05 ** (1 / 19), 0.95 ** (1 / 19)), abs=1e-4)


def test_bounds_need_as_many_images_as_the_sets() -> None:
    """18 images cannot give 95 %."""
    with pytest.raises(ValueError, match="needs 19 held-out images, there are 18"):
        coverage_bounds(0.05, 18, 100)


@pytest.mark.parametrize(("errors", "n"), [(0, 100), (3, 500), (20, 21), (5, 5)])
def test_the_binomial_bound_is_clopper_and_pearsons(errors: int, n: int) -> None:
    """The exact one-sided interval of scipy ends there."""
    interval = binomtest(errors, n, alternative="less").proportion_ci(0.99, method="exact")
    assert binomial_bound(errors, n, 0.01) == pytest.approx(interval.high)


def selective(n: int, rng: np.random.Generator) -> tuple[Floats, Bools]:
    """Confidences (N,) and whether the answer is right, whose error rate at confidence c is (1 − c)."""
    confidences = 1 - 0.5 * rng.random(n) ** 2
    return confidences, rng.random(n) < confidences


@pytest.mark.slow
def test_the_risk_is_kept_as_often_as_promised() -> None:
    """Of 600 thresholds found with δ = 0.2 at most about a fifth let more errors through than promised."""
    rng, delta = np.random.default_rng(8), 0.2
    broken = 0
    for _ in range(600):
        found = risk_control(*selective(600, rng), risk=0.12, delta=delta)
        # Above a threshold t the true error rate is the mean of 0.5 u² over u² ≤ 2 (1 − t).
        truth = min(1.0, 2 * (1 - found.threshold)) / 6
        broken += truth > found.bound
    assert binom.sf(broken - 1, 600, delta) > 1e-4


def test_a_threshold_is_not_higher_than_it_need_be() -> None:
    """With 20,000 images the risk reached is close to the one promised, and the figures are those of the images."""
    confidences, correct = selective(20_000, np.random.default_rng(9))
    found = risk_control(confidences, correct, risk=0.07, delta=0.05)
    answered = confidences >= found.threshold
    assert found.coverage == answered.mean()
    assert (~correct[answered]).mean() < found.bound <= 0.07
    assert (~correct[answered]).mean() > 0.055
    assert found.bound == binomial_bound(int((~correct[answered]).sum()), int(answered.sum()), 0.05 / len(COVERAGES))


def test_a_risk_that_all_answers_keep_needs_no_abstention() -> None:
    """Three errors among 5,000 keep 1 % with every image answered."""
    correct = np.arange(5000) >= 3
    found = risk_control(np.linspace(0.5, 1, 5000), correct, risk=0.01, delta=0.05)
    assert (found.coverage, found.threshold) == (1, 0.5)


def test_a_few_errors_among_many_do_not_hide_a_threshold() -> None:
    """34 errors among 5,000, the most of them doubtful: 0.3 % is kept at a coverage above 90 %."""
    rng = np.random.default_rng(10)
    confidences = np.sort(rng.random(5000))
    correct = np.ones(5000, bool)
    correct[rng.choice(250, 30, replace=False)] = False
    correct[rng.choice(4750, 4, replace=False) + 250] = False
    assert risk_control(confidences, correct, risk=0.003, delta=0.05).coverage > 0.9


def test_an_unreachable_risk_is_refused_with_what_it_would_take() -> None:
    """As many flawless answers as are named suffice, one fewer does not."""
    confidences = np.linspace(0.5, 1, 300)
    with pytest.raises(RiskError, match=r"keeps the risk of a wrong answer at 0\.01 on 300 images: that takes 597"):
        risk_control(confidences, np.ones(300, bool), risk=0.01, delta=0.05)
    for n, enough in ((597, True), (596, False)):
        bound = binomial_bound(0, n, 0.05 / len(COVERAGES))
        assert (bound <= 0.01) == enough


def test_equal_confidences_are_answered_together() -> None:
    """Where all confidences are one, it is all images or none."""
    found = risk_control(np.full(2000, 0.9), np.arange(2000) >= 2, risk=0.02, delta=0.05)
    assert (found.threshold, found.coverage) == (0.9, 1)
    labels = draw(np.tile([0.9, 0.1], (2000, 1)), np.random.default_rng(0))
    with pytest.raises(RiskError):
        risk_control(np.full(2000, 0.9), labels == 0, risk=0.02, delta=0.05)


@pytest.mark.parametrize(
    ("n", "wrong", "risks", "promised"),
    [
        (1000, 0, (0.02, 0.05, 0.1), 0.02),
        (200, 0, (0.02, 0.05, 0.1), 0.05),
        (1000, 90, (0.02, 0.05, 0.1, 0.2), 0.2),
        (30, 0, (0.02, 0.05, 0.1), None),
        (1000, 0, (0.02,), 0.02),
    ],
)
def test_the_least_risk_that_can_be_kept_is_promised(
    n: int, wrong: int, risks: tuple[float, ...], promised: float | None
) -> None:
    """Where errors are among the surest images as among all, abstaining does not help; too few images can keep none."""
    confidences = np.random.default_rng(0).permutation(n) / n
    correct = np.random.default_rng(1).permutation(n) >= wrong
    if promised is None:
        with pytest.raises(RiskError, match="takes 57 answers without an error"):
            least_risk(confidences, correct, risks, 0.05)
        return
    risk, found = least_risk(confidences, correct, risks, 0.05)
    assert risk == promised
    assert found.bound <= risk
    assert found.coverage >= 0.5
    assert found == risk_control(confidences, correct, risk, 0.05)


def test_a_risk_that_leaves_few_images_gives_way_to_a_greater_one() -> None:
    """Kept among a third of the images alone, 2 % is no use to anybody; where there is no greater one, it is taken."""
    confidences = np.arange(1500) / 1500
    correct = (confidences > 0.7) | (np.arange(1500) % 10 > 0)
    alone, few = least_risk(confidences, correct, (0.02,), 0.05)
    assert alone == 0.02
    assert few.coverage < 0.5
    risk, found = least_risk(confidences, correct, (0.02, 0.1), 0.05)
    assert risk == 0.1
    assert found.coverage >= 0.5
