"""Which method a model gets: the simplest that held-out images have nothing against.

The null hypothesis is the MAP temperature. A richer method takes its place only if, cross-validated, its likelihood is
better by more than one standard error, and is a candidate only where there are errors enough to fit it on.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.fitting import FITS
from service.calibration import Floats, Labels
from service.calibrators import Params, probabilities

NULL_HYPOTHESIS = "map_temperature"
FOLDS = 5
# Errors of the raw network among the images to fit on, from which a method is a candidate.
ERRORS_NEEDED = {NULL_HYPOTHESIS: 0, "beta_pooled": 30, "isotonic_pooled": 100, "vector": 100}
# They can change the answer, so somebody must want them.
OPT_IN = frozenset({"vector"})


@dataclass(frozen=True)
class Selection:
    """The method chosen, fitted on all images, and why.

    cv_nll: mean cross-validated −ln p_y of each candidate, in nats. se: of its paired difference to the MAP
    temperature, 0 for that itself.
    """

    candidates: tuple[str, ...]
    cv_nll: dict[str, float]
    se: dict[str, float]
    chosen: str
    seed: int
    folds: int
    params: Params


def select(logits: Floats, labels: Labels, *, opt_in: frozenset[str] = frozenset(), seed: int = 0) -> Selection:
    """Choose and fit a method on logits (N, C) and labels (N,).

    A candidate is eligible if its mean paired gain over the MAP temperature exceeds one standard error of it; the
    eligible one of least cross-validated loss is chosen, the MAP temperature if there is none. `opt_in` admits
    methods that are not tried unasked. Raises ValueError for fewer than 5 images.
    """
    if len(labels) < FOLDS:
        raise ValueError(f"{FOLDS}-fold cross-validation needs {FOLDS} images to fit on, there are {len(labels)}")
    names = candidates(int((logits.argmax(1) != labels).sum()), opt_in)
    losses = {name: cross_validated(name, logits, labels, seed) for name in names}
    differences = {name: loss - losses[NULL_HYPOTHESIS] for name, loss in losses.items()}
    cv_nll = {name: float(loss.mean()) for name, loss in losses.items()}
    se = {name: float(gap.std(ddof=1) / np.sqrt(len(gap))) for name, gap in differences.items()}
    eligible = [name for name in names if -differences[name].mean() > se[name]]
    chosen = min(eligible, key=cv_nll.__getitem__, default=NULL_HYPOTHESIS)
    return Selection(names, cv_nll, se, chosen, seed, FOLDS, FITS[chosen](logits, labels))


def candidates(errors: int, opt_in: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The methods that so many errors of the raw network can support, simplest first."""
    unknown = opt_in - OPT_IN
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be opted into, only {', '.join(sorted(OPT_IN))}")
    allowed = ERRORS_NEEDED.keys() - (OPT_IN - opt_in)
    return tuple(name for name, needed in ERRORS_NEEDED.items() if name in allowed and errors >= needed)


def cross_validated(method: str, logits: Floats, labels: Labels, seed: int) -> npt.NDArray[np.float64]:
    """−ln p_y of each image, in nats, by the parameters fitted without its fold. (N, C), (N,) → (N,)."""
    return _losses(cross_calibrated(method, logits, labels, seed), labels)


def cross_calibrated(method: str, logits: Floats, labels: Labels, seed: int) -> Floats:
    """The probabilities of each image, by the parameters fitted without its fold. (N, C), (N,) → (N, C)."""
    wide = np.asarray(logits, np.float64)
    folds = fold_numbers(wide.argmax(1) != labels, seed)
    calibrated = np.empty_like(wide)
    for fold in range(FOLDS):
        held = folds == fold
        calibrated[held] = probabilities(method, wide[held], FITS[method](wide[~held], labels[~held]))
    return calibrated


def fold_numbers(wrong: npt.NDArray[np.bool_], seed: int) -> npt.NDArray[np.intp]:
    """A fold for each image, 0 … 4: equally many images and, to within one, errors in each. (N,) → (N,)."""
    order = np.lexsort([np.random.default_rng(seed).random(len(wrong)), wrong])
    folds = np.empty(len(wrong), np.intp)
    folds[order] = np.arange(len(wrong)) % FOLDS
    return folds


def _losses(q: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    chosen = q[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)))
