"""export.fitting: each fit finds the truth, is its loss's minimum, and stays calm where there is little."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from export.fitting import FITS, FitError, centred_isotonic, converged, newton
from service.calibration import Floats, Labels, fit_temperature, negative_log_likelihood
from service.calibrators import KEEPS_ORDER, METHODS, Params, probabilities
from tests.draws import draw, exaggerated, honest_logits, near_perfect

FITTED = sorted(FITS.keys() - {"identity"})


def array(params: Params, name: str) -> Floats:
    return np.asarray(params[name])


def test_every_method_has_its_fit() -> None:
    """The names are those of service.calibrators."""
    assert FITS.keys() == METHODS.keys()


class Network(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What scikit-learn takes for a fitted classifier whose decision function gives logits."""

    def fit(self, logits: Floats, labels: Labels) -> "Network":
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, logits: Floats) -> Floats:
        return logits

    def predict(self, logits: Floats) -> Labels:
        return np.asarray(logits.argmax(1))


@pytest.mark.parametrize("seed", range(4))
def test_the_unpenalised_temperature_is_scikit_learns(seed: int) -> None:
    """CalibratedClassifierCV(method="temperature") finds the same to 1e-4."""
    rng = np.random.default_rng(seed)
    logits, labels = exaggerated(3000, 6, float(rng.uniform(0.4, 4)), rng)
    network = FrozenEstimator(Network().fit(logits, labels))
    oracle = CalibratedClassifierCV(network, method="temperature").fit(logits, labels)
    beta = oracle.calibrated_classifiers_[0].calibrators[0].beta_
    assert fit_temperature(logits, labels, prior_sd=np.inf) == pytest.approx(1 / float(beta), rel=1e-4)


def beta_map(p: Floats, a: float, b: float, c: float) -> Floats:
    """As Kull et al. 2017 write it: 1 / (1 + 1 / (e^c p^a / (1 − p)^b)), shared out among the classes."""
    odds = np.exp(c) * p**a / (1 - p) ** b
    scores = 1 / (1 + 1 / odds)
    return np.asarray(scores / scores.sum(1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("truth", [(1.0, 1.0, 0.0), (1.6, 0.8, 0.7), (0.7, 1.3, -0.5)])
def test_a_beta_map_is_recovered(truth: tuple[float, float, float]) -> None:
    """With 20,000 labels drawn from a beta map of p, the fit's probabilities are the map's within 0.02."""
    rng = np.random.default_rng(1)
    logits = honest_logits(20_000, 5, rng)
    honest = beta_map(softmax(logits, axis=1), *truth)
    fitted = probabilities("beta_pooled", logits, FITS["beta_pooled"](logits, draw(honest, rng)))
    assert np.abs(fitted - honest).max() < 0.02
    if truth != (1.0, 1.0, 0.0):
        assert np.abs(softmax(logits, axis=1) - honest).max() > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_beta_fit_is_the_posteriors_maximum(seed: int) -> None:
    """A general optimiser without our gradient, on the formula as published and the stated prior, ends there too."""
    rng = np.random.default_rng(seed)
    logits, labels = exaggerated(400, 4, 1.8, rng)
    params = FITS["beta_pooled"](logits, labels)
    p = softmax(logits / params["temperature"], axis=1)

    def loss(theta: Floats) -> float:
        q = beta_map(p, np.exp(theta[0]), np.exp(theta[1]), theta[2])
        prior = (theta[0] / 0.5) ** 2 + (theta[1] / 0.5) ** 2 + theta[2] ** 2
        return float(prior / 2 - np.log(q[np.arange(400), labels]).sum())

    oracle = minimize(loss, np.array([0.3, -0.3, 0.2]), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    found = [np.log(array(params, "a")), np.log(array(params, "b")), array(params, "c")]
    assert np.allclose(found, oracle, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_vector_fit_is_the_posteriors_maximum(seed: int) -> None:
    """A general optimiser without our gradient, on the stated ridge, ends there too."""
    rng = np.random.default_rng(seed)
    logits, labels = exaggerated(300, 3, 1.8, rng)
    params, precision = FITS["vector"](logits, labels), 1 / fit_temperature(logits, labels)

    def loss(theta: Floats) -> float:
        ridge = ((theta[:3] - precision) / (0.25 * precision)) ** 2 + (theta[3:] / 0.5) ** 2
        scores = log_softmax(logits * theta[:3] + theta[3:], axis=1)
        return float(ridge.sum() / 2 - scores[np.arange(300), labels].sum())

    oracle = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-4}).x
    assert np.allclose([*array(params, "weights"), *array(params, "biases")], oracle, atol=1e-4)


@pytest.mark.slow
def test_vector_scaling_finds_a_class_that_is_off() -> None:
    """A class whose logit is 1.5 nats too high and another's half as steep are put right."""
    rng = np.random.default_rng(5)
    honest = honest_logits(20_000, 4, rng)
    labels = draw(softmax(honest, axis=1), rng)
    logits = honest * (1, 0.5, 1, 1) + (1.5, 0, 0, 0)
    fitted = probabilities("vector", logits, FITS["vector"](logits, labels))
    assert np.abs(fitted - softmax(honest, axis=1)).mean() < 0.005
    one = probabilities("map_temperature", logits, FITS["map_temperature"](logits, labels))
    assert np.abs(one - softmax(honest, axis=1)).mean() > 0.05


def test_the_pooled_isotonic_map_finds_the_curve() -> None:
    """Two classes, p understated by a power of 2 of the odds: R is that curve within 0.02 wherever there is data."""
    rng = np.random.default_rng(2)
    p = rng.uniform(0.001, 0.999, 40_000)
    truth = expit(2 * logit(p))
    labels = (rng.random(40_000) < truth).astype(int)
    logits = np.stack([np.log(1 - p), np.log(p)], axis=1)
    params = FITS["isotonic_pooled"](logits, labels)
    assert np.abs(probabilities("isotonic_pooled", logits, params)[:, 1] - truth).max() < 0.03


def minimax(x: Floats, y: Floats) -> Floats:
    """Isotonic regression by its max–min formula (Robertson et al. 1988, equation 1.4.3), ties in x pooled. (N,)."""
    places = np.unique(x)
    means = [[y[(x >= low) & (x <= high)].mean() if low <= high else np.inf for high in places] for low in places]
    fitted = [max(min(means[j][k] for k in range(i, len(places))) for j in range(i + 1)) for i in range(len(places))]
    return np.array(fitted)[np.searchsorted(places, x)]


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=200)
def test_blocks_are_those_of_isotonic_regression_centred(pairs: list[tuple[int, bool]]) -> None:
    """Values are the max–min formula's; each block stands at its members' mean (Oron & Flournoy 2017, section 3)."""
    x, y = (np.array(column, float) for column in zip(*pairs, strict=True))
    fitted = minimax(x, y)
    places, values, sizes = centred_isotonic(x, y)
    levels = list(np.unique(fitted.round(12)))
    assert values == pytest.approx(levels, abs=1e-9)
    assert places == pytest.approx([x[np.isclose(fitted, level)].mean() for level in levels])
    assert list(sizes) == [np.isclose(fitted, level).sum() for level in levels]


def test_the_isotonic_map_passes_through_every_block() -> None:
    """Where they are few, its inner knots are the centred blocks, less those of value 0 and 1."""
    logits, labels = exaggerated(300, 4, 1.5, np.random.default_rng(8))
    params = FITS["isotonic_pooled"](logits, labels)
    x, y, _ = centred_isotonic(softmax(logits / params["temperature"], axis=1).ravel(), np.eye(4)[labels].ravel())
    inner = (y > 0) & (y < 1)
    assert 3 < inner.sum() < 62
    assert array(params, "knots")[1:-1].tolist() == x[inner].tolist()
    assert array(params, "values")[1:-1].tolist() == y[inner].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "sharpness"), [(5, 1.0), (300, 3.0), (30_000, 3.0), (30_000, 30.0)])
def test_the_isotonic_map_rises_strictly_from_end_to_end(n: int, sharpness: float) -> None:
    """At most 64 knots from 0 to 1, values strictly increasing within [0, 1]: no class with p > 0 gets 0."""
    rng = np.random.default_rng(n)
    logits, labels = exaggerated(n, 10, 1.5, rng, sharpness)
    params = FITS["isotonic_pooled"](logits, labels)
    knots, values = array(params, "knots"), array(params, "values")
    assert 2 <= len(knots) == len(values) <= 64
    assert knots[0] == values[0] == 0
    assert knots[-1] == 1 >= values[-1]
    assert (np.diff(knots) > 0).all()
    assert (np.diff(values) > 0).all()
    p = softmax(logits / params["temperature"], axis=1)
    assert (probabilities("isotonic_pooled", logits, params)[p > 0] > 0).all()


def test_thinning_the_isotonic_map_costs_nothing_to_speak_of() -> None:
    """Up to 64 knots give the curve of all blocks, of which there are more, within 0.02."""
    rng = np.random.default_rng(9)
    p = np.sort(rng.random(60_000))
    logits = np.stack([np.log(1 - p), np.log(p)], axis=1)
    labels = (rng.random(60_000) < p**2).astype(int)
    params = FITS["isotonic_pooled"](logits, labels)
    scaled = softmax(logits / params["temperature"], axis=1)
    x, y, _ = centred_isotonic(scaled.ravel(), np.eye(2)[labels].ravel())
    assert len(x) > 64 >= len(array(params, "knots")) > 55
    everywhere = np.linspace(0.01, 0.99, 500)
    thinned = np.interp(everywhere, array(params, "knots"), array(params, "values"))
    assert np.abs(thinned - np.interp(everywhere, x, y)).max() < 0.02


def test_a_network_that_says_exactly_one_and_errs_is_not_believed() -> None:
    """Where a tenth of the certain answers are wrong, R(1) is 0.9."""
    labels = np.arange(1000) % 10
    logits = np.zeros((1000, 10))
    logits[np.arange(1000), np.where(np.arange(1000) < 100, (labels + 1) % 10, labels)] = 1e6
    params = FITS["isotonic_pooled"](logits, labels)
    assert array(params, "knots")[-1] == 1
    assert array(params, "values")[-1] == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("errors", [0, 1, 3])
def test_a_handful_of_errors_explodes_nothing(method: str, errors: int) -> None:
    """Fitted on 500 images of a near-perfect calibrated model, every method keeps its likelihood on 20,000 others."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        params = FITS[method](*near_perfect(500, errors, rng))
        fresh = rng.normal(size=(20_000, 10))
        fresh[np.arange(20_000), rng.integers(0, 10, 20_000)] += rng.normal(11, 2, 20_000)
        labels = draw(softmax(fresh, axis=1), rng)
        before = negative_log_likelihood(softmax(fresh, axis=1), labels)
        after = negative_log_likelihood(probabilities(method, fresh, params), labels)
        assert after < before + 0.02, (seed, before, after)
        if "temperature" in params:
            assert 0.5 <= array(params, "temperature") <= 2


@pytest.mark.parametrize("method", FITTED)
def test_calibrated_logits_stay_as_they_are(method: str) -> None:
    """Fitted on logits that mean what they say, every method changes probabilities by less than 0.01 on average."""
    rng = np.random.default_rng(3)
    logits, labels = exaggerated(10_000, 6, 1.0, rng)
    fitted = probabilities(method, logits, FITS[method](logits, labels))
    assert np.abs(fitted - softmax(logits, axis=1)).mean() < 0.01


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1.0, 1.7, 3.0])
def test_a_calibrated_temperature_is_within_its_sampling_error_of_the_truth(temperature: float) -> None:
    """|ln T − ln truth| is less than 3.5 standard deviations, those being from the Fisher information."""
    rng = np.random.default_rng(6)
    logits, labels = exaggerated(4000, 5, temperature, rng)
    honest = logits / temperature
    p = softmax(honest, axis=1)
    information = ((p * honest**2).sum(1) - (p * honest).sum(1) ** 2).sum()
    found = float(array(FITS["map_temperature"](logits, labels), "temperature"))
    assert abs(np.log(found / temperature)) < 3.5 / np.sqrt(information)


@pytest.mark.parametrize("method", FITTED)
def test_renumbering_the_classes_renumbers_the_probabilities(method: str) -> None:
    """Fit and map know nothing of the order of the classes."""
    rng = np.random.default_rng(4)
    logits, labels = exaggerated(2000, 6, 2.0, rng)
    permutation = rng.permutation(6)
    renumbered = logits[:, np.argsort(permutation)]
    ours = probabilities(method, logits, FITS[method](logits, labels))
    theirs = probabilities(method, renumbered, FITS[method](renumbered, permutation[labels]))
    assert np.allclose(theirs[:, permutation], ours, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(KEEPS_ORDER))
@given(seed=st.integers(0, 2**32), temperature=st.floats(0.3, 4))
@example(seed=214, temperature=1.0)  # two blocks have 2 of 9 each
@settings(deadline=None, max_examples=15)
def test_what_promises_to_keep_the_order_does(method: str, seed: int, temperature: float) -> None:
    """On fresh logits the fitted map ranks the classes as the logits do, the best first, and rows sum to 1."""
    rng = np.random.default_rng(seed)
    params = FITS[method](*exaggerated(400, 5, temperature, rng))
    fresh = honest_logits(500, 5, rng, 5.0)
    q = probabilities(method, fresh, params)
    ranked = np.take_along_axis(q, np.argsort(fresh, axis=1), 1)
    assert (np.diff(ranked, axis=1) >= 0).all()
    assert (np.take_along_axis(q, fresh.argmax(1)[:, None], 1)[:, 0] == q.max(1)).all()
    assert np.allclose(q.sum(1), 1, atol=1e-12)
    # Mild enough that no two classes are the same to the last bit before they are calibrated.
    mild, order = fresh / 5, np.argsort(fresh, axis=1)
    tempered = softmax(mild / params.get("temperature", 1), axis=1)
    apart = np.diff(np.take_along_axis(tempered, order, 1), axis=1) > 1e-9
    assert (np.diff(np.take_along_axis(probabilities(method, mild, params), order, 1), axis=1)[apart] > 0).all()


@pytest.mark.parametrize("method", FITTED)
def test_single_precision_logits_are_fitted_in_double(method: str) -> None:
    """float32 logits give the parameters of the same numbers in float64."""
    rng = np.random.default_rng(7)
    logits, labels = exaggerated(800, 4, 2.0, rng)
    narrow = logits.astype(np.float32)
    ours, wide = (FITS[method](z, labels) for z in (narrow, narrow.astype(np.float64)))
    assert ours.keys() == wide.keys()
    for name in ours:
        assert np.allclose(array(ours, name), array(wide, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_odd_logits_are_refused(method: str, bad: float) -> None:
    """NaN and infinity give ValueError rather than parameters."""
    with pytest.raises(ValueError, match="finite logits"):
        FITS[method](np.array([[1.0, bad], [0.0, 1.0]]), np.array([0, 1]))


def test_a_fit_that_does_not_converge_says_so() -> None:
    """A loss without a minimum gives FitError, not the last point visited."""
    with pytest.raises(FitError, match="still falls by"):
        converged(lambda x: (float(np.log1p(np.exp(x)).sum()), 0 * x + 0.5), np.zeros(2))
    with pytest.raises(FitError, match="still falls by"):
        newton(lambda x: (float(np.log1p(np.exp(x)).sum()), 0 * x + 0.5, np.eye(2)), np.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("scale", [0.02, 0.3, 10.0, 300.0])
def test_fits_converge_whatever_the_scale_of_the_logits(method: str, scale: float) -> None:
    """From few images to many, two classes to forty, timid to certain: parameters are found and answers finite."""
    for seed, (n, classes, sharpness) in enumerate([(30, 40, 6.0), (300, 2, 0.2), (2000, 3, 12.0)]):
        rng = np.random.default_rng(seed)
        logits, labels = exaggerated(n, classes, scale, rng, sharpness)
        assert np.isfinite(probabilities(method, logits, FITS[method](logits, labels))).all()
