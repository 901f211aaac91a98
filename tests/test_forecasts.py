"""export.forecasts: R∘F is the ideal calibration on outcomes nobody has seen, for real and for ordered targets."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma, kstest, norm

from export.fitting import isotonic_pooled
from export.forecasts import Recalibrator, fit, ordinal, ordinal_pits
from service.calibration import Floats, Labels, softmax
from service.calibrators import probabilities
from tests.draws import draw, honest_logits

N = 6000
# F_t(y_t) of forecasts that are wrong in a way, of outcomes y whose truth varies from case to case.
FORECASTS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "variance half": lambda rng: norm.cdf(rng.normal(size=N), scale=np.sqrt(0.5)),
    "variance double": lambda rng: norm.cdf(rng.normal(size=N), scale=np.sqrt(2)),
    "biased": lambda rng: norm.cdf(rng.normal(size=N), loc=0.7),
    "skewed": lambda rng: norm.cdf((rng.gamma(2, size=N) - 2) / np.sqrt(2)),
    "heteroscedastic": lambda rng: norm.cdf(rng.normal(size=N) * rng.choice([0.4, 1.5], N)),
    "honest": lambda rng: rng.random(N),
}


@pytest.mark.parametrize("kind", FORECASTS)
def test_recalibrated_forecasts_are_uniform_at_fresh_outcomes(kind: str) -> None:
    """Before R a Kolmogorov–Smirnov test of uniformity fails beyond doubt, after it passes, on outcomes held out."""
    rng = np.random.default_rng(0)
    pits, fresh = FORECASTS[kind](rng), FORECASTS[kind](rng)[:1500]
    recalibrated = fit(pits)(fresh)
    assert kstest(recalibrated, "uniform").pvalue > 0.01
    if kind != "honest":
        assert kstest(fresh, "uniform").pvalue < 1e-6


def test_quantiles_hold_what_they_say() -> None:
    """Forecasts of half the variance: of 90 % intervals by R⁻¹ 90 % hold fresh outcomes, of the raw ones far fewer."""
    rng = np.random.default_rng(1)
    forecast = norm(scale=np.sqrt(0.5))
    recalibrator = fit(forecast.cdf(rng.normal(size=N)))
    fresh, ends = rng.normal(size=20_000), np.array([0.05, 0.95])
    raw, mended = forecast.ppf(ends), forecast.ppf(recalibrator.level(ends))
    assert ((fresh >= mended[0]) & (fresh <= mended[1])).mean() == pytest.approx(0.9, abs=0.015)
    assert ((fresh >= raw[0]) & (fresh <= raw[1])).mean() < 0.78


def test_the_map_is_the_papers() -> None:
    """R at each value that occurred is the share of outcomes at or below it, with T + 1 in the place of T."""
    pits = np.array([0.2, 0.5, 0.5, 0.9])
    recalibrator = fit(pits)
    assert list(recalibrator.knots) == [0, 0.2, 0.5, 0.9, 1]
    assert recalibrator.values == pytest.approx((0, 1 / 5, 3 / 5, 4 / 5, 1))


@given(
    pits=st.lists(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)), min_size=1, max_size=40),
    at=st.lists(st.floats(0, 1), min_size=2, max_size=10),
)
@settings(deadline=None, max_examples=200)
def test_a_map_is_a_distribution_function_of_one(pits: list[float], at: list[float]) -> None:
    """R(0) = 0, R(1) = 1, monotone between, strictly where points are apart; R⁻¹ is its inverse."""
    recalibrator = fit(np.array(pits))
    assert recalibrator(np.array([0.0, 1.0])).tolist() == [0, 1]
    assert recalibrator.level(np.array([0.0, 1.0])).tolist() == [0, 1]
    mapped = recalibrator(np.sort(at))
    assert (np.diff(mapped) >= 0).all()
    apart = np.diff(np.sort(at)) > 1e-6
    assert (np.diff(mapped)[apart] > 0).all()
    levels = np.linspace(0, 1, 21)
    assert recalibrator(recalibrator.level(levels)) == pytest.approx(levels, abs=1e-9)


def test_outcomes_that_were_ruled_out_leave_the_ends_where_they_are() -> None:
    """A tenth of the outcomes at F = 0: R(0) stays 0, and just above it R has risen by that tenth."""
    recalibrator = fit(np.concatenate([np.zeros(100), np.linspace(0.001, 0.999, 899), np.ones(100)]))
    assert recalibrator(np.array([0.0]))[0] == 0
    assert recalibrator(np.array([0.001]))[0] == pytest.approx(100 / 1100, abs=0.002)
    assert recalibrator(np.array([0.999]))[0] == pytest.approx(1000 / 1100, abs=0.002)


def test_many_outcomes_make_few_knots() -> None:
    """100,000 of them give at most 514, and the map that all would give to 2 in 1,000."""
    pits = norm.cdf(np.random.default_rng(2).normal(size=100_000), scale=0.6)
    recalibrator = fit(pits)
    assert len(recalibrator.knots) <= 514
    at = np.linspace(0, 1, 3001)
    everything = np.searchsorted(np.sort(pits), at, side="right") / 100_001
    assert np.abs(recalibrator(at) - everything)[1:-1].max() < 0.003


def test_a_recalibrator_survives_json() -> None:
    """Written and read it is the same."""
    recalibrator = fit(np.random.default_rng(3).random(50))
    assert Recalibrator.read(json.loads(json.dumps(recalibrator.document()))) == recalibrator


@pytest.mark.parametrize(
    ("knots", "values"),
    [
        ((0.0, 1.0), (0.0, 0.9)),
        ((0.1, 1.0), (0.0, 1.0)),
        ((0.0, 0.5, 0.5, 1.0), (0.0, 0.2, 0.3, 1.0)),
        ((0.0, 0.5, 1.0), (0.0, 1.1, 1.0)),
        ((0.0, 0.5, 1.0), (0.0, 1.0)),
        ((0.0, float("nan"), 1.0), (0.0, 0.5, 1.0)),
    ],
)
def test_a_map_that_does_not_rise_from_0_to_1_is_refused(knots: tuple[float, ...], values: tuple[float, ...]) -> None:
    """Flat, falling, short or not finite."""
    with pytest.raises(ValueError, match="rise strictly from 0 to 1"):
        Recalibrator(knots, values)


@pytest.mark.parametrize("pits", [np.array([]), np.array([0.5, 1.5]), np.array([0.5, np.nan])])
def test_values_that_are_none_of_a_distribution_function_are_refused(pits: Floats) -> None:
    """None at all, outside [0, 1] or NaN."""
    with pytest.raises(ValueError, match="all in"):
        fit(pits)


def graded(n: int, rng: np.random.Generator, grades: int = 5) -> tuple[Floats, Floats, Labels]:
    """Grades: too narrow a forecast of them, the truth, and outcomes. (N, C), (N, C), (N,)."""
    inner = np.linspace(-1.5, 1.5, grades - 1)
    edges, centre = np.concatenate([[-np.inf], inner, [np.inf]]), rng.normal(size=(n, 1))
    narrow, truth = (np.diff(norm.cdf(edges - centre, scale=scale), axis=1) for scale in (0.5, 1.0))
    return narrow, truth, draw(truth, rng)


def test_randomised_values_are_uniform_only_for_calibrated_grades() -> None:
    """The truth's pass a Kolmogorov–Smirnov test, the narrow forecast's and F(y) itself do not."""
    narrow, truth, labels = graded(N, np.random.default_rng(4))
    assert kstest(ordinal_pits(truth, labels), "uniform").pvalue > 0.01
    assert kstest(ordinal_pits(narrow, labels), "uniform").pvalue < 1e-6
    assert kstest(truth.cumsum(1)[np.arange(N), labels], "uniform").pvalue < 1e-6


@pytest.mark.parametrize(("grades", "left"), [(5, 0.5), (60, 0.35)])
def test_recalibrated_grades_are_probabilities_and_calibrated(grades: int, left: float) -> None:
    """Rows sum to 1, fresh values are much more uniform, the more grades the more so, and the likelihood is better."""
    rng = np.random.default_rng(5)
    narrow, _, labels = graded(N, rng, grades)
    recalibrator = fit(ordinal_pits(narrow, labels))
    fresh, _, outcomes = graded(1500, rng, grades)
    mended = ordinal(recalibrator, fresh)
    assert mended.sum(1) == pytest.approx(np.ones(1500), abs=1e-12)
    assert (mended >= 0).all()
    before, after = (kstest(ordinal_pits(p, outcomes), "uniform") for p in (fresh, mended))
    assert after.statistic < left * before.statistic
    if grades == 60:
        assert after.pvalue > 0.01
    rows = np.arange(1500)
    assert np.log(mended[rows, outcomes]).mean() > np.log(np.maximum(fresh[rows, outcomes], 1e-12)).mean() + 0.05
    assert (ordinal_pits(fresh, outcomes, seed=1) != ordinal_pits(fresh, outcomes, seed=2)).any()


def test_classes_without_an_order_must_not_be_recalibrated_so() -> None:
    """Renumbering nominal classes changes the probabilities of R∘F, not those of the pooled isotonic map."""
    rng = np.random.default_rng(6)
    honest = honest_logits(4000, 4, rng)
    logits, labels = honest * 2, draw(softmax(honest), rng)
    order = np.array([2, 0, 3, 1])
    renumbered = np.argsort(order)[labels]

    def cumulative(logits: Floats, labels: Labels) -> Floats:
        p = softmax(logits)
        return ordinal(fit(ordinal_pits(p, labels)), p)

    def pooled(logits: Floats, labels: Labels) -> Floats:
        return probabilities("isotonic_pooled", logits, isotonic_pooled(logits, labels))

    gaps = [np.abs(way(logits, labels)[:, order] - way(logits[:, order], renumbered)) for way in (cumulative, pooled)]
    assert gaps[0].max() > 0.05
    assert gaps[1].max() < 1e-9


def test_the_skewed_forecast_is_mended_to_the_truth() -> None:
    """R∘F of a normal forecast for gamma outcomes is the gamma distribution, within 0.02."""
    rng = np.random.default_rng(7)
    forecast, truth = norm(2, np.sqrt(2)), gamma(2)
    recalibrator = fit(forecast.cdf(truth.rvs(40_000, random_state=rng)))
    at = np.linspace(0.2, 8, 100)
    assert np.abs(recalibrator(forecast.cdf(at)) - truth.cdf(at)).max() < 0.02
    assert np.abs(forecast.cdf(at) - truth.cdf(at)).max() > 0.05
