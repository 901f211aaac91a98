"""export.gates: what is no calibration is refused, each kind by name; what is one passes."""

import numpy as np
import pytest

from export.fitting import FITS
from export.gates import (
    CalibratorError,
    GateError,
    SplitError,
    Verdict,
    accuracy_kept,
    argmax_kept,
    calibration,
    check_disjoint,
    check_parameters,
    check_spread,
    improvement,
    require,
)
from service.calibration import Floats, Labels, brier_score, negative_log_likelihood, softmax
from service.calibrators import KEEPS_ORDER, METHODS, Params, probabilities
from tests.draws import draw, exaggerated, honest_logits


def constant_confidence(logits: Floats, accuracy: float) -> Floats:
    """The accuracy for the top label of every image, the rest shared out: no calibration error, no information."""
    n, classes = logits.shape
    p = np.full((n, classes), (1 - accuracy) / (classes - 1))
    p[np.arange(n), logits.argmax(1)] = accuracy
    return p


def judge(method: str, params: Params, logits: Floats, labels: Labels, seed: int = 0) -> tuple[Verdict, ...]:
    """Through every gate, as `export.calibrate.fit` goes, but with one set of images for all of them."""
    wide = np.asarray(logits, np.float64)
    check_parameters(params)
    raw, calibrated = (probabilities(name, wide, params) for name in ("identity", method))
    check_spread(raw, calibrated)
    return (
        *improvement(raw, calibrated, labels, seed),
        *calibration(calibrated, labels, seed),
        argmax_kept(method, wide, calibrated),
    )


def failed(verdicts: tuple[Verdict, ...]) -> set[str]:
    return {verdict.name for verdict in verdicts if not verdict.passed}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_sound_calibration_passes_every_gate(method: str) -> None:
    """Fitted on 5,000 images of an overconfident model, every method but the identity passes on 3,000 others."""
    rng = np.random.default_rng(2)
    params = FITS[method](*exaggerated(5000, 4, 1.8, rng))
    verdicts = judge(method, params, *exaggerated(3000, 4, 1.8, rng))
    assert [verdict.name for verdict in verdicts] == ["nll", "brier", "ece_15", "classwise_ece_15", "argmax"]
    if method == "identity":
        assert failed(verdicts) == {"ece_15", "classwise_ece_15"}
    else:
        assert failed(verdicts) == set()
        require(verdicts)


@pytest.mark.slow
def test_perfectly_calibrated_models_pass() -> None:
    """Of 200 models whose labels are drawn from their own probabilities at least 97 in 100 pass all gates."""
    rng, passed = np.random.default_rng(2), 0
    for _ in range(200):
        logits, labels = exaggerated(300, 3, 1.0, rng)
        passed += not failed(judge("identity", {}, logits, labels))
    assert passed >= 0.97 * 200
    assert passed < 200


def test_a_failed_gate_tells_its_figures_and_a_remedy() -> None:
    """An uncalibrated model's error names the figure, the bound and what to do, one line for each gate."""
    logits, labels = exaggerated(3000, 4, 2.5, np.random.default_rng(3))
    verdicts = judge("identity", {}, logits, labels)
    with pytest.raises(GateError) as caught:
        require(verdicts)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.failed) == 2
    top, classwise = caught.value.failed
    assert lines[0].startswith(f"ECE-15 is {top.figure:.3%}, by chance alone it would be at most {top.bound:.3%}")
    assert lines[1].startswith(f"classwise ECE is {classwise.figure:.3%}, by chance alone")
    assert "fit on more images" in lines[0]
    assert top.figure > top.bound
    assert classwise.figure > classwise.bound


def test_a_model_worse_than_the_raw_one_is_refused() -> None:
    """Doubling calibrated logits costs likelihood and Brier score: gate 1 names both with their upper bounds."""
    rng = np.random.default_rng(4)
    logits, labels = exaggerated(2000, 4, 1.0, rng)
    verdicts = improvement(softmax(logits), softmax(2 * logits), labels)
    assert failed(verdicts) == {"nll", "brier"}
    with pytest.raises(GateError, match="record the method as identity"):
        require(verdicts)


@pytest.mark.parametrize("scale", [0.5, 0.97, 1.0, 1.05, 2.0])
def test_the_bound_of_the_improvement_is_a_paired_bootstrap(scale: float) -> None:
    """The figure is about the mean gain and 1.645 standard errors of the paired differences."""
    rng = np.random.default_rng(5)
    logits, labels = exaggerated(4000, 4, 1.5, rng)
    raw, calibrated = softmax(logits), softmax(logits * scale)
    rows = np.arange(4000)
    gains = np.log(raw[rows, labels]) - np.log(calibrated[rows, labels])
    squares = [((p - np.eye(4)[labels]) ** 2).sum(1) for p in (raw, calibrated)]
    for verdict, gain in zip(improvement(raw, calibrated, labels), (gains, squares[1] - squares[0]), strict=True):
        upper = gain.mean() + 1.645 * gain.std() / np.sqrt(4000)
        assert verdict.figure == pytest.approx(upper, abs=0.15 * gain.std() / np.sqrt(4000) + 1e-15)
        assert verdict.passed == (verdict.figure <= 0)
        assert verdict.bound == 0
    assert gains.mean() == pytest.approx(
        negative_log_likelihood(calibrated, labels) - negative_log_likelihood(raw, labels), abs=1e-12
    )
    assert (squares[1] - squares[0]).mean() == pytest.approx(
        brier_score(calibrated, labels) - brier_score(raw, labels), abs=1e-12
    )


def test_the_identity_never_fails_for_not_improving() -> None:
    """No change is no harm: both figures are 0 and pass."""
    logits, labels = exaggerated(500, 4, 2.0, np.random.default_rng(6))
    assert [(v.figure, v.passed) for v in improvement(softmax(logits), softmax(logits), labels)] == [(0, True)] * 2


def test_a_constant_confidence_is_refused_though_its_calibration_error_is_none() -> None:
    """It passes the ECE gate, as any fake would; it is refused by name, and by gate 1 against a decent raw model."""
    rng = np.random.default_rng(7)
    logits, labels = exaggerated(4000, 5, 1.3, rng)
    raw, fake = softmax(logits), constant_confidence(logits, float((logits.argmax(1) == labels).mean()))
    assert calibration(fake, labels)[0].passed
    assert failed(improvement(raw, fake, labels)) == {"nll", "brier"}
    with pytest.raises(CalibratorError, match="for every image: it tells nothing about any of them"):
        check_spread(raw, fake)


def test_a_constant_map_is_refused_in_the_judging() -> None:
    """An isotonic map that is flat but for a hair, fitted by nobody, does not get as far as the gates."""
    logits, labels = exaggerated(1000, 2, 1.5, np.random.default_rng(8))
    params: Params = {"temperature": 1.0, "knots": [0.0, 1e-300, 1.0], "values": [0.0, 0.5, 0.5 + 1e-9]}
    with pytest.raises(CalibratorError, match="tells nothing"):
        judge("isotonic_pooled", params, logits, labels)


def test_a_network_that_is_constant_itself_is_not_blamed_on_the_calibrator() -> None:
    """A raw confidence that never varies may stay so."""
    check_spread(np.full((10, 2), 0.5), np.full((10, 2), 0.5))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1.5}, r"temperature is -1\.5: it must be positive"),
        ({"temperature": 0.0}, r"temperature is 0\.0: it must be positive"),
        ({"temperature": float("nan")}, "temperature is not finite"),
        ({"temperature": 0.04}, r"0\.04 is outside \[0\.05, 20\]: are these logits"),
        ({"temperature": 21.0}, r"21 is outside \[0\.05, 20\]"),
        ({"temperature": 1.0, "a": -0.1, "b": 1.0, "c": 0.0}, r"a is -0\.1: it must be positive"),
        ({"temperature": 1.0, "a": 1.0, "b": 0.0, "c": 0.0}, r"b is 0\.0: it must be positive"),
        ({"temperature": 1.0, "a": 1.0, "b": 1.0, "c": float("inf")}, "c is not finite"),
        ({"weights": [1.0, -1.0], "biases": [0.0, 0.0]}, "weights is .* must be positive"),
        ({"weights": [1.0, 1.0], "biases": [0.0, float("nan")]}, "biases is not finite"),
        ({"temperature": 1.0, "knots": [0.0, 0.5, 1.0], "values": [0.0, 0.7, 0.6]}, "must rise strictly"),
        ({"temperature": 1.0, "knots": [0.0, 0.5, 0.5, 1.0], "values": [0.0, 0.2, 0.3, 1.0]}, "must rise strictly"),
        ({"temperature": 1.0, "knots": [0.0, 0.9], "values": [0.0, 1.0]}, "must rise strictly"),
        ({"temperature": 1.0, "knots": [0.0, 1.0], "values": [-0.1, 1.0]}, "must rise strictly"),
        ({"temperature": 1.0, "knots": [0.0, 1.0], "values": [0.0, 0.5, 1.0]}, "must rise strictly"),
    ],
)
def test_parameters_that_calibrate_nothing_are_refused_by_name(params: Params, message: str) -> None:
    """Negative or zero temperatures, what is not finite, maps that fall: each with its own message."""
    with pytest.raises(CalibratorError, match=message):
        check_parameters(params)
    with pytest.raises(CalibratorError, match=message):
        judge("map_temperature", params, np.eye(4), np.arange(4))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_fitted_parameters_are_sound(method: str) -> None:
    """Whatever a fit returns passes the check."""
    check_parameters(FITS[method](*exaggerated(300, 4, 0.7, np.random.default_rng(9))))


def test_a_calibrator_fitted_on_the_test_split_is_refused() -> None:
    """By index, by digest of each image, by digest of the split: its own message, with how many images."""
    with pytest.raises(SplitError, match=r"fitted on the test split \(2 images\)"):
        check_disjoint({"fit": np.array([1, 2, 3]), "test": np.array([2, 3, 4])})
    with pytest.raises(SplitError, match=r"fitted on the test split \(1 images\)"):
        check_disjoint({"train": ["a"], "fit": ["b", "c"], "test": ["c"]})
    with pytest.raises(SplitError, match=r"fitted on the test split \(all of their images\)"):
        check_disjoint({"test": "f00d", "fit": "f00d"})


def test_other_splits_must_not_meet_either() -> None:
    """The message names the two; disjoint ones say nothing."""
    with pytest.raises(SplitError, match="train and conformal share 1 images"):
        check_disjoint({"train": [1, 2], "fit": [3], "conformal": [2, 4]})
    check_disjoint({"train": [1, 2], "fit": [3], "conformal": [4], "test": "digest of other files"})


def test_a_changed_answer_fails_only_those_that_promised_none() -> None:
    """Two answers of four differ: refused of a temperature, counted of a vector."""
    logits = np.eye(4) * 3
    calibrated = softmax(logits)
    calibrated[:2] = calibrated[:2, [1, 0, 2, 3]]
    verdict = argmax_kept("map_temperature", logits, calibrated)
    assert (verdict.figure, verdict.bound, verdict.passed) == (2, 0, False)
    assert argmax_kept("vector", logits, calibrated).passed
    with pytest.raises(GateError, match="2 of 4 answers changed by map_temperature: use a method"):
        require([verdict])


@pytest.mark.parametrize("method", sorted(KEEPS_ORDER))
def test_no_method_that_promises_it_changes_an_answer(method: str) -> None:
    """On 20,000 fresh images, certain and doubtful ones."""
    rng = np.random.default_rng(10)
    params = FITS[method](*exaggerated(1000, 10, 2.0, rng))
    logits = honest_logits(20_000, 10, rng, 8.0)
    assert argmax_kept(method, logits, probabilities(method, logits, params)).passed


def test_a_class_that_is_off_fails_the_classwise_gate_alone() -> None:
    """A model whose confidences are right but which mistakes the runner-up: only the classwise figure shows it."""
    rng = np.random.default_rng(11)
    p = np.tile([0.6, 0.3, 0.1], (6000, 1))
    labels: Labels = draw(np.tile([0.6, 0.1, 0.3], (6000, 1)), rng)
    top, classwise = calibration(p, labels)
    assert top.passed
    assert not classwise.passed


def test_the_same_seed_gives_the_same_verdicts() -> None:
    """Gates are reproducible to the bit."""
    logits, labels = exaggerated(400, 3, 1.5, np.random.default_rng(12))
    params = FITS["map_temperature"](logits, labels)
    verdicts = judge("map_temperature", params, logits, labels, seed=5)
    assert verdicts == judge("map_temperature", params, logits, labels, seed=5)
    assert verdicts != judge("map_temperature", params, logits, labels, seed=6)


@pytest.mark.parametrize(("after", "passed"), [(0.94, True), (0.935, True), (0.9349, False), (0.95, True)])
def test_a_variant_may_lose_three_in_a_thousand(after: float, passed: bool) -> None:
    """Exactly as much is allowed; of more, what to do is told."""
    verdict = accuracy_kept(0.938, after)
    assert verdict.passed is passed
    if not passed:
        with pytest.raises(GateError, match=r"went from 93\.80% to 93\.49%: serve the network as it was trained"):
            require([verdict])
