"""export.selection: a richer method is chosen only on evidence that the images themselves give."""

import numpy as np
import pytest

from export.fitting import FITS
from export.selection import FOLDS, OPT_IN, candidates, cross_validated, fold_numbers, select
from service.calibration import Floats, Labels, negative_log_likelihood, softmax
from service.calibrators import probabilities
from tests.draws import draw, exaggerated, honest_logits, near_perfect


def skewed(n: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Logits whose calibration no temperature can mend, one beta map can. (N, 5), (N,)."""
    logits = honest_logits(n, 5, rng)
    params = {"temperature": 1.0, "a": 2.0, "b": 0.5, "c": 1.5}
    return logits, draw(probabilities("beta_pooled", logits, params), rng)


def biased(n: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Logits that favour one class by 1.5 nats. (N, 5), (N,)."""
    logits = honest_logits(n, 5, rng)
    return logits + np.array([1.5, 0, 0, 0, 0]), draw(softmax(logits), rng)


@pytest.mark.slow
def test_a_temperature_is_kept_where_it_is_the_truth() -> None:
    """Of 20 models that only exaggerate, at most a fifth get anything else: so often chance beats one error."""
    rng = np.random.default_rng(0)
    chosen = [select(*exaggerated(600, 4, 2.0, rng)).chosen for _ in range(20)]
    assert chosen.count("map_temperature") >= 16


@pytest.mark.slow
def test_a_beta_map_is_chosen_where_a_temperature_cannot_do() -> None:
    """Where the truth is a beta map it wins, and its parameters are those of a fit on all images."""
    logits, labels = skewed(3000, np.random.default_rng(1))
    selection = select(logits, labels)
    assert selection.chosen == "beta_pooled"
    assert selection.params == FITS["beta_pooled"](logits, labels)


@pytest.mark.slow
def test_a_method_that_may_change_answers_must_be_asked_for() -> None:
    """Vector scaling wins where one class is favoured, but is not tried unasked."""
    logits, labels = biased(3000, np.random.default_rng(2))
    assert "vector" not in select(logits, labels).candidates
    selection = select(logits, labels, opt_in=OPT_IN)
    assert selection.chosen == "vector"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (0, ("map_temperature",)),
        (29, ("map_temperature",)),
        (30, ("map_temperature", "beta_pooled")),
        (99, ("map_temperature", "beta_pooled")),
        (100, ("map_temperature", "beta_pooled", "isotonic_pooled")),
    ],
)
def test_errors_open_up_candidates(errors: int, expected: tuple[str, ...]) -> None:
    """30 errors for the beta map, 100 for the isotonic one; vector needs 100 and to be asked for."""
    assert candidates(errors) == expected
    assert candidates(errors, OPT_IN) == expected + (("vector",) if errors >= 100 else ())


def test_errors_are_the_raw_networks() -> None:
    """29 wrong answers among 500 leave the temperature alone in the field, 30 do not."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(500, 3)) * 3
    labels = logits.argmax(1)
    labels[:29] = (labels[:29] + 1) % 3
    assert select(logits, labels).candidates == ("map_temperature",)
    labels[29] = (labels[29] + 1) % 3
    assert select(logits, labels).candidates == ("map_temperature", "beta_pooled")


def test_only_what_changes_answers_can_be_opted_into() -> None:
    """A name that is nothing of the kind is refused with what could be meant."""
    with pytest.raises(ValueError, match="histogram cannot be opted into, only vector"):
        candidates(500, frozenset({"histogram"}))


@pytest.mark.parametrize(("n", "errors"), [(500, 3), (501, 30), (2500, 157), (7, 7), (5, 0)])
def test_folds_share_images_and_errors_evenly(n: int, errors: int) -> None:
    """No two folds differ by more than one image or one error; the seed decides which."""
    wrong = np.arange(n) < errors
    folds = fold_numbers(wrong, seed=1)
    assert np.ptp(np.bincount(folds, minlength=FOLDS)) <= 1
    assert np.ptp(np.bincount(folds[wrong], minlength=FOLDS)) <= 1
    assert (fold_numbers(wrong, seed=1) == folds).all()
    if n > 7:
        assert (fold_numbers(wrong, seed=2) != folds).any()


@pytest.mark.parametrize("method", sorted(FITS.keys() - {"identity"}))
def test_an_image_is_scored_by_a_fit_that_never_saw_it(method: str) -> None:
    """The losses are those of fitting on four folds by hand and measuring on the fifth."""
    logits, labels = exaggerated(400, 4, 2.0, np.random.default_rng(4))
    losses = cross_validated(method, logits, labels, seed=7)
    folds = fold_numbers(logits.argmax(1) != labels, seed=7)
    for fold in range(FOLDS):
        held = folds == fold
        q = probabilities(method, logits[held], FITS[method](logits[~held], labels[~held]))
        assert losses[held].mean() == pytest.approx(negative_log_likelihood(q, labels[held]), rel=1e-12)


@pytest.mark.slow
def test_the_rule_is_one_standard_error_of_the_paired_difference() -> None:
    """Over models of all kinds: chosen has the least loss of those that gain more than one standard error."""
    rng = np.random.default_rng(5)
    models = [skewed(800, rng) for _ in range(2)] + [exaggerated(800, 5, 1.5, rng) for _ in range(2)]
    seen = set()
    for logits, labels in [*models, *(biased(400, rng) for _ in range(2))]:
        selection = select(logits, labels, opt_in=OPT_IN, seed=3)
        losses = {name: cross_validated(name, logits, labels, 3) for name in selection.candidates}
        null = losses["map_temperature"]
        gains = {name: (null - loss).mean() for name, loss in losses.items()}
        errors = {name: np.std(null - loss, ddof=1) / np.sqrt(len(null)) for name, loss in losses.items()}
        assert selection.cv_nll == pytest.approx({name: loss.mean() for name, loss in losses.items()})
        assert selection.se == pytest.approx(errors)
        eligible = [name for name in losses if gains[name] > errors[name]]
        assert selection.chosen == max(eligible, key=lambda name: gains[name], default="map_temperature")
        seen.add(selection.chosen)
    assert len(seen) >= 3


def test_a_choice_repeats_itself_and_tells_how_it_was_made() -> None:
    """The same seed gives the same selection, seed and folds included; nothing about the classes' order matters."""
    rng = np.random.default_rng(6)
    logits, labels = skewed(600, rng)
    selection = select(logits, labels, seed=11)
    assert selection == select(logits.copy(), labels.copy(), seed=11)
    assert (selection.seed, selection.folds) == (11, 5)
    permutation = rng.permutation(5)
    renumbered = select(logits[:, np.argsort(permutation)], permutation[labels], seed=11)
    assert renumbered.chosen == selection.chosen
    assert renumbered.cv_nll == pytest.approx(selection.cv_nll, rel=1e-6)


def test_a_near_perfect_model_gets_its_temperature_without_ado() -> None:
    """Three errors among 500 support nothing else, and the loss stays small."""
    selection = select(*near_perfect(500, 3, np.random.default_rng(8)))
    assert selection.chosen == "map_temperature"
    assert selection.cv_nll["map_temperature"] < 0.1


def test_fewer_images_than_folds_are_refused() -> None:
    """Four images cannot be cross-validated in five folds."""
    with pytest.raises(ValueError, match="needs 5 images to fit on, there are 4"):
        select(np.eye(4), np.arange(4))
