"""service.calibration: fits that find the truth, and measures that agree with independent definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from scipy.stats import betabinom

from service.calibration import (
    Bools,
    Floats,
    Labels,
    brier_score,
    calibration_error_null,
    energy,
    expected_calibration_error,
    fit_temperature,
    lac_threshold,
    negative_log_likelihood,
    softmax,
)
from tests.draws import draw, near_perfect


def calibrated_probabilities(n: int, classes: int, sharpness: float, rng: np.random.Generator) -> Floats:
    """Rows that are, by construction, the chances of the labels drawn from them."""
    return softmax(rng.normal(size=(n, classes)) * sharpness)


@pytest.mark.slow
@pytest.mark.parametrize("prior_sd", [0.5, np.inf])
@pytest.mark.parametrize("temperature", [0.05, 0.25, 1, 1.7, 3, 8, 20])
def test_temperature_is_recovered_from_draws(temperature: float, prior_sd: float) -> None:
    """With 20,000 labels drawn from softmax(z / T), T is found within 3 %."""
    rng = np.random.default_rng(17)
    honest = rng.normal(size=(20_000, 5)) * 2
    labels = draw(softmax(honest), rng)
    assert fit_temperature(honest * temperature, labels, prior_sd) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_prior_the_fit_is_the_likelihoods_minimum(seed: int) -> None:
    """prior_sd=inf agrees with a general optimiser of the likelihood to 1e-4."""
    rng = np.random.default_rng(seed)
    temperature = rng.uniform(0.3, 5)
    honest = rng.normal(size=(2000, 7)) * 1.5
    logits, labels = honest * temperature, draw(softmax(honest), rng)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(2000), labels].mean())

    oracle = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, labels, prior_sd=np.inf) == pytest.approx(oracle, rel=1e-4)


def test_the_prior_is_log_normal_with_the_given_deviation() -> None:
    """The fit agrees with a general optimiser of likelihood × prior, where the prior matters."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, 5)) * 6
    labels = draw(softmax(logits / 4), rng)

    def loss(log_temperature: float) -> float:
        likelihood = log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(40), labels].sum()
        return float(log_temperature**2 / (2 * 0.5**2) - likelihood)

    oracle = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, labels, 0.5) == pytest.approx(oracle, rel=1e-4)
    assert fit_temperature(logits, labels, np.inf) != pytest.approx(oracle, rel=0.01)


@pytest.mark.parametrize("errors", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_handful_of_errors_keeps_the_temperature_near_one(errors: int, seed: int) -> None:
    """A near-perfect calibrated model leaves T in [0.5, 2] though 500 images show no or three errors."""
    rng = np.random.default_rng(seed)
    logits, labels = near_perfect(500, errors, rng)
    temperature = fit_temperature(logits, labels)
    assert 0.5 <= temperature <= 2
    assert negative_log_likelihood(softmax(logits / temperature), labels) < 0.1
    if errors == 0:
        # What the prior is there for.
        assert fit_temperature(logits, labels, prior_sd=np.inf) < 0.01


def test_calibration_of_calibrated_logits_changes_little() -> None:
    """Logits that already mean what they say get T near 1."""
    rng = np.random.default_rng(5)
    fits = [
        fit_temperature(logits, draw(softmax(logits), rng))
        for logits in (rng.normal(size=(3000, 10)) * 3 for _ in range(5))
    ]
    assert np.mean(fits) == pytest.approx(1, abs=0.03)
    assert np.ptp(fits) < 0.15


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), min_size=1, max_size=20),
    st.sampled_from([0.05, 0.3, 1.0, 2.7, 20.0]),
)
@settings(deadline=None, max_examples=100)
def test_temperature_keeps_the_argmax(rows: list[list[float]], temperature: float) -> None:
    """The most probable label stays the one of the largest logit; probabilities stay in order and sum to 1."""
    logits = np.array(rows)
    probabilities = softmax(logits / temperature)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-12)
    best = np.take_along_axis(probabilities, logits.argmax(1)[:, None], 1)[:, 0]
    assert (best == probabilities.max(1)).all()
    ordered = np.take_along_axis(probabilities, np.argsort(logits, axis=1), 1)
    assert (np.diff(ordered, axis=1) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_permuting_the_labels_changes_nothing(seed: int) -> None:
    """Renumbering the classes gives the same temperature, threshold, scores and energy."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(800, 6)) * 4
    labels = draw(softmax(logits / 2), rng)
    permutation = rng.permutation(6)
    renumbered, relabelled = logits[:, np.argsort(permutation)], permutation[labels]

    def figures(logits: Floats, labels: Labels) -> list[float]:
        temperature = fit_temperature(logits, labels)
        probabilities = softmax(logits / temperature)
        return [
            temperature,
            lac_threshold(probabilities, labels, 0.1),
            negative_log_likelihood(probabilities, labels),
            brier_score(probabilities, labels),
            expected_calibration_error(probabilities.max(1), probabilities.argmax(1) == labels),
            float(energy(logits).sum()),
        ]

    assert figures(renumbered, relabelled) == pytest.approx(figures(logits, labels), rel=1e-9)


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.array([[0.0, np.nan]]), np.array([[0.0, np.inf]])])
def test_a_temperature_needs_finite_logits(logits: Floats) -> None:
    """No rows, NaN or infinity: ValueError rather than a number."""
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(logits, np.zeros(len(logits), int))


@pytest.mark.parametrize(("alpha", "n", "splits"), [(0.05, 2500, 60), (0.1, 500, 100), (0.01, 99, 100)])
def test_prediction_sets_cover_as_often_as_theory_says(alpha: float, n: int, splits: int) -> None:
    """On fresh splits coverage follows its beta-binomial distribution: each split and the mean are inside bounds."""
    rng = np.random.default_rng(11)
    m = 5000
    rank = int(np.ceil((n + 1) * (1 - alpha)))
    fresh = betabinom(m, rank, n + 1 - rank)
    coverages = []
    for _ in range(splits):
        # Overconfident on purpose: coverage must not need calibrated probabilities.
        honest = rng.normal(size=(n + m, 4)) * 2
        probabilities, labels = softmax(honest * 2), draw(softmax(honest), rng)
        threshold = lac_threshold(probabilities[:n], labels[:n], alpha)
        coverages.append(int((probabilities[n:][np.arange(m), labels[n:]] >= threshold).sum()))
    low, high = fresh.ppf([0.001 / splits, 1 - 0.001 / splits])
    assert low <= min(coverages)
    assert max(coverages) <= high
    assert np.mean(coverages) == pytest.approx(fresh.mean(), abs=4 * fresh.std() / np.sqrt(splits))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_threshold_is_a_probability_that_occurred(probability: float, kind: type[np.floating]) -> None:
    """A label exactly at the threshold belongs to the set, so ties cannot empty it."""
    probabilities = np.full((200, 2), probability, kind)
    threshold = lac_threshold(probabilities, np.zeros(200, int), 0.05)
    assert threshold == float(probabilities[0, 0])


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999)])
def test_too_few_images_for_a_coverage_are_refused(alpha: float, needed: int) -> None:
    """⌈1/α⌉ − 1 images give the smallest probability as the threshold; one fewer gives ValueError with the number."""
    probabilities = np.linspace(0.2, 0.9, needed)[:, None]
    labels = np.zeros(needed, int)
    assert lac_threshold(probabilities, labels, alpha) == 0.2
    with pytest.raises(ValueError, match=f"needs {needed} held-out images, there are {needed - 1}"):
        lac_threshold(probabilities[1:], labels[1:], alpha)


def looped_error(confidences: Floats, correct: Bools, bins: int) -> float:
    """Guo et al. 2017, equation 3, word by word: bin m is ((m − 1)/M, m/M]; 0 goes to the first."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, c in enumerate(confidences) if (m - 1) / bins < c <= m / bins or (m == 1 and c == 0)]
        if members:
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            confidence = sum(float(confidences[i]) for i in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - confidence)
    return total


EDGES = [k / 15 for k in range(16)]
NEAR_EDGES = [*np.nextafter(EDGES[:-1], 1).tolist(), *np.nextafter(EDGES[1:], 0).tolist()]


@given(
    st.lists(
        st.tuples(st.one_of(st.sampled_from(EDGES + NEAR_EDGES), st.floats(0, 1)), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
@settings(deadline=None, max_examples=200)
def test_the_expected_calibration_error_is_the_papers(pairs: list[tuple[float, bool]]) -> None:
    """Agrees with a loop over the paper's bins to 1e-12, with confidences on and beside every edge."""
    confidences, correct = (np.array(column) for column in zip(*pairs, strict=True))
    assert expected_calibration_error(confidences, correct) == pytest.approx(
        looped_error(confidences, correct, 15), abs=1e-12
    )


@pytest.mark.parametrize("edge", EDGES[1:])
def test_an_edge_belongs_to_the_bin_below_it(edge: float) -> None:
    """Just below and exactly on an edge share a bin; just above does not."""
    both = np.array([False, True])
    above = min(1.0, float(np.nextafter(edge, 2)))
    shared = expected_calibration_error(np.array([edge - 0.01, edge]), both)
    assert shared == pytest.approx(abs(2 * edge - 0.01 - 1) / 2, abs=1e-12)
    if above > edge:
        apart = expected_calibration_error(np.array([edge, above]), both)
        assert apart == pytest.approx((edge + abs(1 - above)) / 2, abs=1e-12)


def test_single_precision_confidences_are_binned_as_what_they_are() -> None:
    """float32 confidences give the figure of the same numbers in float64."""
    rng = np.random.default_rng(0)
    confidences = rng.random(5000).astype(np.float32)
    correct = rng.random(5000) < 0.5
    wide = confidences.astype(np.float64)
    assert expected_calibration_error(confidences, correct) == pytest.approx(looped_error(wide, correct, 15), abs=1e-12)


def test_brier_and_likelihood_are_their_definitions() -> None:
    """Agree with plain loops to 1e-12 and leave their arguments as they were."""
    rng = np.random.default_rng(2)
    probabilities = calibrated_probabilities(300, 5, 3, rng)
    labels = draw(probabilities, rng)
    before = probabilities.copy()
    brier = sum(
        (p - (k == label)) ** 2 for row, label in zip(probabilities, labels, strict=True) for k, p in enumerate(row)
    )
    likelihood = -sum(np.log(row[label]) for row, label in zip(probabilities, labels, strict=True))
    assert brier_score(probabilities, labels) == pytest.approx(brier / 300, abs=1e-12)
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(likelihood / 300, abs=1e-12)
    assert (probabilities == before).all()


def test_extremes_of_brier_and_likelihood() -> None:
    """Certain and right is 0; certain and wrong is 2 and large but finite."""
    certain = np.array([[1.0, 0.0]])
    assert brier_score(certain, np.array([0])) == 0
    assert brier_score(certain, np.array([1])) == 2
    assert negative_log_likelihood(certain, np.array([0])) == 0
    assert 100 < negative_log_likelihood(certain, np.array([1])) < np.inf


def test_the_null_is_what_sampling_alone_costs() -> None:
    """A calibrated model right in 94 % of 10,000 cases scores about 0.5 % on average, twice that almost never."""
    rng = np.random.default_rng(4)
    # Most confidences near 1 and a tail of doubtful ones, as networks of this accuracy give.
    confidences = np.where(rng.random(10_000) < 0.8, 1 - rng.exponential(0.008, 10_000), rng.uniform(0.4, 1, 10_000))
    confidences = np.clip(confidences + 0.94 - confidences.mean(), 0.1, 1)
    assert confidences.mean() == pytest.approx(0.94, abs=0.003)
    null = calibration_error_null(confidences, draws=300)
    assert null.mean == pytest.approx(0.005, abs=0.0012)
    assert null.mean < null.p95 < null.p99 < 0.0105


def test_the_nulls_percentiles_are_what_they_are_called() -> None:
    """Of a perfectly calibrated model's figures 95 and 99 in a hundred lie below p95 and p99."""
    rng = np.random.default_rng(8)
    confidences = rng.uniform(0.4, 1, 150)
    null = calibration_error_null(confidences, draws=4000)
    fresh = np.array([expected_calibration_error(confidences, rng.random(150) < confidences) for _ in range(4000)])
    assert fresh.mean() == pytest.approx(null.mean, rel=0.02)
    assert (fresh <= null.p95).mean() == pytest.approx(0.95, abs=0.02)
    assert (fresh <= null.p99).mean() == pytest.approx(0.99, abs=0.008)


def test_the_null_shrinks_with_more_images_and_repeats_itself() -> None:
    """Four times the images halve it; the same seed gives the same figures; overconfidence lies far outside."""
    rng = np.random.default_rng(6)
    confidences = rng.uniform(0.5, 1, 8000)
    few, many = calibration_error_null(confidences[:2000], 200), calibration_error_null(confidences, 200)
    assert many.mean == pytest.approx(few.mean / 2, rel=0.15)
    assert calibration_error_null(confidences, 200) == many
    assert expected_calibration_error(confidences, rng.random(8000) < confidences - 0.1) > many.p99


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_energy_is_minus_the_log_of_the_summed_exponentials(kind: type[np.floating]) -> None:
    """Agrees with scipy's logsumexp."""
    logits = (np.random.default_rng(0).normal(size=(200, 10)) * 20).astype(kind)
    assert np.allclose(
        energy(logits), -logsumexp(logits.astype(np.float64), axis=1), rtol=1e-5 if kind is np.float32 else 1e-12
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_huge_logits_do_not_overflow(kind: type[np.floating]) -> None:
    """Logits of ±10,000 give finite numbers everywhere, without a warning."""
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], kind)
    labels = np.array([1, 0, 2])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        probabilities = softmax(logits)
        assert np.allclose(probabilities, [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
        assert np.isfinite(energy(logits)).all()
        assert 0 < fit_temperature(logits, labels) < np.inf
        assert 0 < fit_temperature(logits, labels, prior_sd=np.inf) < np.inf
        assert np.isfinite(negative_log_likelihood(probabilities, labels))
        assert np.isfinite(brier_score(probabilities, labels))
