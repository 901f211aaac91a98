"""export.calibrate: what is promised holds on images that nothing was fitted on, or nothing is promised."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from export import calibrate
from export.calibrate import DELTA, ID_TPR, calibrated, fit, fit_strangeness
from export.conformal import RiskError
from export.gates import CalibrationError, CalibratorError, GateError, SplitError
from export.promises import Promises
from export.selection import Selection
from export.splits import HeldOut, Split
from export.strangeness import SCORES, Seen
from models import MODELS
from service.audit import array_digest
from service.calibration import Floats, energy, lac_threshold, softmax
from service.calibrators import probabilities
from service.documents import OodMethod
from tests.draws import draw, exaggerated, honest_logits

pytestmark = pytest.mark.slow

CLASSES = 5
# Low enough that a few hundred images can show that it is kept.
EASY = Promises(alphas=(0.1, 0.05), risk=0.3)


def part(name: str, n: int, temperature: float, seed: int) -> Split:
    """Images of a model that exaggerates so much."""
    logits, labels = exaggerated(n, CLASSES, temperature, np.random.default_rng(seed))
    return Split(logits.astype(np.float32), labels, name)


def held_out(temperature: float = 3.0, n: int = 1000, seed: int = 0) -> HeldOut:
    return HeldOut(*(part(name, n, temperature, seed + i) for i, name in enumerate(("fit", "conformal", "eval"))))


def forced(method: str, **params: float | list[float]) -> Callable[..., Selection]:
    """A selection that has gone wrong."""

    def select(*_: object, **__: object) -> Selection:
        return Selection((method,), {method: 0.0}, {method: 0.0}, method, 0, 5, params)

    return select


def test_what_exaggerates_is_tempered() -> None:
    """The true temperature is found, every gate is told and passed, and the figures say whose they are."""
    held = held_out()
    fitted = fit(held, EASY)
    assert fitted.selection.chosen == "map_temperature"
    assert fitted.selection.params["temperature"] == pytest.approx(3.0, rel=0.1)
    assert [verdict.name for verdict in fitted.verdicts] == ["nll", "brier", "ece_15", "classwise_ece_15", "argmax"]
    assert all(verdict.passed for verdict in fitted.verdicts)
    assert {level.n for level in fitted.conformal} == {fitted.abstention.n} == {1000}


def test_probabilities_are_the_methods_in_float32() -> None:
    """As the graph gives them, from float64 arithmetic of the method."""
    fitted = fit(held_out(), EASY)
    logits = honest_logits(50, CLASSES, np.random.default_rng(9)).astype(np.float32)
    found = fitted.calibrated(logits)
    assert found.dtype == np.float32
    expected = probabilities(fitted.selection.chosen, logits.astype(np.float64), fitted.selection.params)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    np.testing.assert_array_equal(found, calibrated(fitted.selection, logits))


def test_a_constant_confidence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is better than the network, for one that is sure and knows nothing, and has no calibration error."""
    rng = np.random.default_rng(0)

    def ignorant(name: str) -> Split:
        return Split(
            honest_logits(900, CLASSES, rng), draw(np.tile([0.4, 0.15, 0.15, 0.15, 0.15], (900, 1)), rng), name
        )

    biases = np.log([0.4, 0.15, 0.15, 0.15, 0.15]).tolist()
    monkeypatch.setattr(calibrate, "select", forced("vector", weights=[1e-9] * CLASSES, biases=biases))
    with pytest.raises(CalibratorError, match=r"confidence is 0\.4000 for every image: it tells nothing"):
        fit(HeldOut(*map(ignorant, ("fit", "conformal", "eval"))), EASY)


@pytest.mark.parametrize(
    ("same", "reason"),
    [
        ({"eval": "fit"}, "the calibrator was fitted on the test split"),
        ({"conformal": "fit"}, "fit and conformal share all of their images: make the splits disjoint"),
        ({"eval": "conformal"}, "conformal and test share all of their images"),
    ],
)
def test_a_split_that_is_another_is_refused(same: dict[str, str], reason: str) -> None:
    """By their digests, before anything is fitted."""
    held = held_out(n=50)
    splits = {name: replace(getattr(held, name), index_sha256=other) for name, other in same.items()}
    with pytest.raises(SplitError, match=reason):
        fit(replace(held, **splits), EASY)


def test_logits_of_another_scale_are_refused() -> None:
    """A temperature that no network needs."""
    with pytest.raises(CalibratorError, match=r"temperature of [3-9]\d.* outside \[0.05, 20\]: are these logits\?"):
        fit(held_out(temperature=50.0), EASY)


@pytest.mark.parametrize("name", ["fit", "conformal", "eval"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(name: str, odd: float) -> None:
    """One in any split, which is named."""
    held = held_out(n=200)
    getattr(held, name).logits[7, 1] = odd
    with pytest.raises(CalibratorError, match=f"logits of the {name} split are not finite: .* train it again"):
        fit(held, EASY)


def test_a_test_set_that_is_not_drawn_alike_fails_the_gates() -> None:
    """The network exaggerates there and nowhere else: both gates are told, with a remedy each."""
    held = replace(held_out(temperature=1.0), eval=part("eval", 1000, 4.0, 7))
    with pytest.raises(GateError) as refusal:
        fit(held, EASY)
    assert [verdict.name for verdict in refusal.value.failed] == ["ece_15", "classwise_ece_15"]
    for line in str(refusal.value).splitlines():
        assert "by chance alone it would be at most" in line
        assert "see that both splits are drawn alike" in line


def test_answers_that_change_fail_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that promises to keep them, and does not."""

    def turned(method: str, logits: Floats, params: object) -> Floats:
        return softmax(logits if method == "identity" else np.roll(logits, 1, axis=1))

    held = held_out(temperature=1.0)
    rolled = [replace(split, labels=(split.labels + 1) % CLASSES) for split in vars(held).values()]
    monkeypatch.setattr(calibrate, "select", forced("map_temperature", temperature=1.5))
    monkeypatch.setattr(calibrate, "probabilities", turned)
    with pytest.raises(GateError, match=r"\d+ of 1000 answers changed by map_temperature"):
        fit(HeldOut(*rolled), EASY)


def test_too_few_images_to_fit_on_are_refused() -> None:
    """Not by a traceback."""
    held = held_out(n=60)
    few = Split(held.fit.logits[:4], held.fit.labels[:4], "fit")
    with pytest.raises(CalibrationError, match="5-fold cross-validation needs 5 images"):
        fit(replace(held, fit=few), EASY)


def test_a_method_that_does_not_improve_becomes_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """By images it was not fitted on; what was tried stays on record."""
    monkeypatch.setattr(calibrate, "select", forced("map_temperature", temperature=2.0))
    fitted = fit(held_out(temperature=1.0), EASY)
    assert (fitted.selection.chosen, fitted.selection.params) == ("identity", {})
    assert fitted.selection.candidates == ("map_temperature",)
    logits = np.eye(CLASSES) * 4
    np.testing.assert_array_equal(fitted.calibrated(logits), softmax(logits).astype(np.float32))


def test_a_bare_network_that_fails_is_not_blamed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried first is told, and why it was not taken; then the gates of the network as it is."""
    held = held_out(temperature=1.0)
    monkeypatch.setattr(calibrate, "select", forced("map_temperature", temperature=2.0))
    with pytest.raises(GateError) as refusal:
        fit(replace(held, eval=part("eval", 1000, 4.0, 7)), EASY)
    told = str(refusal.value)
    assert told.startswith(
        "the network is taken uncalibrated, for map_temperature does not improve on it for certain (NLL"
    )
    assert "); then ECE-15 is " in told
    assert [verdict.name for verdict in refusal.value.failed] == ["ece_15", "classwise_ece_15"]


def test_whether_it_improves_is_asked_of_the_fit_split_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images for thresholds that are too few to say so."""
    held = held_out(temperature=1.2)
    few = Split(held.conformal.logits[:40], held.conformal.labels[:40], "conformal")
    assert fit(replace(held, conformal=few), replace(EASY, alphas=(0.1,), risk=0.6)).selection.chosen != "identity"


def test_thresholds_come_from_the_conformal_split() -> None:
    """Each is that of the plain computation on it."""
    held = held_out()
    fitted = fit(held, EASY)
    p, labels = fitted.calibrated(held.conformal.logits), held.conformal.labels
    assert [level.threshold for level in fitted.conformal] == [lac_threshold(p, labels, a) for a in (0.1, 0.05)]
    answered = p.max(1) >= fitted.abstention.threshold
    assert fitted.abstention.coverage == answered.mean()
    assert (p.argmax(1) != labels)[answered].mean() <= fitted.abstention.risk_bound <= EASY.risk


def test_thresholds_come_from_no_other_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the method held fast, other images to fit and to test on leave them; another conformal split does not."""
    monkeypatch.setattr(calibrate, "select", forced("map_temperature", temperature=3.0))
    held = held_out()
    fitted = fit(held, EASY)
    moved = fit(replace(held, fit=part("fit", 700, 3.0, 20), eval=part("eval", 800, 3.0, 21)), EASY)
    assert (moved.conformal, moved.abstention) == (fitted.conformal, fitted.abstention)
    other = fit(replace(held, conformal=part("conformal", 1000, 3.0, 22)), EASY)
    assert other.conformal != fitted.conformal
    assert other.abstention != fitted.abstention


def test_the_test_set_is_only_reported_on() -> None:
    """Another one changes no parameter and no threshold."""
    held = held_out()
    fitted, moved = fit(held, EASY), fit(replace(held, eval=part("eval", 800, 3.0, 21)), EASY)
    assert moved.selection == fitted.selection
    assert (moved.conformal, moved.abstention) == (fitted.conformal, fitted.abstention)
    assert moved.verdicts != fitted.verdicts


def test_the_order_of_images_does_not_matter() -> None:
    """Of those for thresholds not at all, of those to fit on not for the temperature."""
    held, order = held_out(), np.random.default_rng(1).permutation(1000)

    def shuffled(split: Split) -> Split:
        return replace(split, logits=split.logits[order], labels=split.labels[order])

    fitted = fit(held, EASY)
    moved = fit(replace(held, conformal=shuffled(held.conformal)), EASY)
    assert (moved.conformal, moved.abstention) == (fitted.conformal, fitted.abstention)
    again = fit(replace(held, fit=shuffled(held.fit)), EASY)
    assert again.selection.params["temperature"] == pytest.approx(fitted.selection.params["temperature"], rel=1e-9)


def test_the_names_of_classes_do_not_matter() -> None:
    """Numbered otherwise, all is the same, and probabilities are numbered so as well."""
    held, order = held_out(), np.array([3, 0, 4, 1, 2])
    places = np.argsort(order)

    def renamed(split: Split) -> Split:
        return replace(split, logits=split.logits[:, order], labels=places[split.labels])

    fitted, moved = fit(held, EASY), fit(HeldOut(*map(renamed, vars(held).values())), EASY)
    assert moved.selection.chosen == fitted.selection.chosen
    assert moved.selection.params == pytest.approx(fitted.selection.params, rel=1e-9)
    for one, other in zip(moved.conformal, fitted.conformal, strict=True):
        assert one.threshold == pytest.approx(other.threshold, rel=1e-5)
    assert moved.abstention.coverage == fitted.abstention.coverage
    logits = held.eval.logits[:20]
    np.testing.assert_allclose(moved.calibrated(logits[:, order]), fitted.calibrated(logits)[:, order], atol=1e-6)


def test_labels_that_are_not_the_images_are_refused() -> None:
    """Dealt out anew, they are no truth that a network could be calibrated to by one number."""
    held, rng = held_out(temperature=1.0), np.random.default_rng(3)
    with pytest.raises(CalibrationError):
        fit(HeldOut(*(replace(s, labels=rng.permutation(s.labels)) for s in vars(held).values())), EASY)


def test_the_alphas_promised_are_those_fitted() -> None:
    """In their order, for the first is served."""
    fitted = fit(held_out(), replace(EASY, alphas=(0.2, 0.01, 0.5)))
    assert [level.alpha for level in fitted.conformal] == [0.2, 0.01, 0.5]
    thresholds = [level.threshold for level in fitted.conformal]
    assert thresholds[1] < thresholds[0] < thresholds[2]


def test_an_alpha_that_is_too_small_is_told() -> None:
    """With how many images it takes."""
    with pytest.raises(CalibrationError, match=r"coverage 0\.9999 needs 9999 held-out images, there are 1000"):
        fit(held_out(), replace(EASY, alphas=(0.05, 0.0001)))


@pytest.mark.parametrize("risk", [0.15, 0.3])
def test_the_risk_promised_is_kept(risk: float) -> None:
    """On images that no threshold comes from; a smaller one answers fewer."""
    held = held_out(n=1500)
    abstention = fit(held, replace(EASY, risk=risk)).abstention
    assert (abstention.risk, abstention.delta) == (risk, DELTA)
    assert 0 < abstention.coverage < 1
    p = fit(held, EASY).calibrated(held.eval.logits)
    answered = p.max(1) >= abstention.threshold
    assert (p.argmax(1) != held.eval.labels)[answered].mean() <= risk
    assert answered.mean() == pytest.approx(abstention.coverage, abs=0.05)


def test_a_smaller_risk_answers_fewer() -> None:
    """The threshold rises with what is promised."""
    held = held_out()
    strict, lax = (fit(held, replace(EASY, risk=risk)).abstention for risk in (0.15, 0.3))
    assert strict.threshold > lax.threshold
    assert strict.coverage < lax.coverage


def test_a_risk_out_of_reach_is_told_with_its_remedy() -> None:
    """How many flawless answers it takes, and what to do instead."""
    with pytest.raises(
        RiskError, match=r"at 0\.0001 on 1000 images: that takes 59912 answers without an error"
    ) as told:
        fit(held_out(), replace(EASY, risk=0.0001))
    assert "promise a greater risk, hold back more images or train a better network" in str(told.value)


def biased(name: str, seed: int) -> Split:
    """A network that never names two of its classes as often as they are there."""
    rng = np.random.default_rng(seed)
    honest = honest_logits(2500, CLASSES, rng)
    labels = draw(softmax(honest), rng)
    return Split((honest + np.array([2.0, -2.0, 0, 0, 0])).astype(np.float32), labels, name)


@pytest.mark.slow
def test_a_method_that_may_change_answers_must_be_opted_into() -> None:
    """Then it is chosen where it is far better, and its changed answers are no failure; unasked it is not tried."""
    held = HeldOut(*(biased(name, seed) for seed, name in enumerate(("fit", "conformal", "eval"))))
    fitted = fit(held, replace(EASY, opt_in=frozenset({"vector"})))
    assert fitted.selection.chosen == "vector"
    changed = next(verdict for verdict in fitted.verdicts if verdict.name == "argmax")
    assert changed.figure > 0
    assert (changed.passed, changed.bound) == (True, np.inf)
    with pytest.raises(GateError, match="opt into vector scaling"):
        fit(held, EASY)


@pytest.mark.parametrize("method", SCORES)
def test_so_many_ordinary_images_are_not_flagged(method: OodMethod) -> None:
    """ID_TPR of them, by the threshold that is told; the digests are those of the arrays."""
    rng, net = np.random.default_rng(0), MODELS["digits"].build().eval()
    width = net.features(torch.zeros(1, 3, 32, 32)).shape[1]

    def seen(n: int) -> Seen:
        features = rng.normal(size=(n, width)).astype(np.float32)
        return Seen(features, rng.normal(size=(n, 10)).astype(np.float32) * 3)

    conformal = seen(1000)
    found = fit_strangeness(net, method, seen(500), conformal)
    assert (found.ood.method, found.ood.id_tpr) == (method, ID_TPR)
    assert found.ood.parameters_sha256 == {name: array_digest(array) for name, array in found.params.items()}
    if method == "energy":
        assert found.params == {}
        flagged = energy(conformal.logits) > found.ood.threshold
        assert flagged.sum() == 10
    other = fit_strangeness(net, method, seen(500), seen(1000))
    assert other.ood.threshold != found.ood.threshold


def test_what_is_fitted_is_what_the_graph_answers_by() -> None:
    """The first alpha's threshold, the method's parameters, and what is strange."""
    fitted = fit(held_out(), replace(EASY, alphas=(0.2, 0.05)))
    strange = fit_strangeness(
        MODELS["digits"].build().eval(),
        "energy",
        Seen(np.zeros((4, 84), np.float32), np.zeros((4, 10), np.float32)),
        Seen(np.zeros((4, 84), np.float32), np.arange(40, dtype=np.float32).reshape(4, 10)),
    )
    answering = fitted.answering(strange)
    assert (answering.method, answering.params) == (fitted.selection.chosen, fitted.selection.params)
    assert answering.set_threshold == fitted.conformal[0].threshold
    assert (answering.ood_method, answering.ood_threshold) == ("energy", strange.ood.threshold)
