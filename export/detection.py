"""How well a score tells strange images from ordinary ones, at every threshold or at one."""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
# Of the ordinary images, how many are accepted where the false positive rate is taken.
ACCEPTED = 0.95


def auroc(ordinary: Scores, strange: Scores) -> float:
    """The share of pairs of an ordinary and a strange image in which the strange one scores higher; ties count half.

    That is the area under the curve of true over false positive rates (Hanley and McNeil 1982): 0.5 by chance, 1 at
    best. Raises ValueError for no scores, or scores that are no numbers.
    """
    _check(ordinary, strange)
    ascending = np.sort(ordinary)
    below = np.searchsorted(ascending, strange, side="left").sum()
    not_above = np.searchsorted(ascending, strange, side="right").sum()
    return float((int(below) + int(not_above)) / (2 * len(ordinary) * len(strange)))


def false_positive_rate(ordinary: Scores, strange: Scores, accepted: float = ACCEPTED) -> float:
    """The share of strange images accepted by the strictest threshold that accepts so many ordinary ones; FPR95.

    An image is accepted when its score is no higher than the threshold. Raises ValueError as `auroc` does.
    """
    _check(ordinary, strange)
    rank = int(np.ceil(accepted * len(ordinary)))
    threshold = np.partition(ordinary, rank - 1)[rank - 1]
    return float((strange <= threshold).mean())


def _check(ordinary: Scores, strange: Scores) -> None:
    for name, scores in {"ordinary": ordinary, "strange": strange}.items():
        if len(scores) == 0 or not np.isfinite(scores).all():
            raise ValueError(f"there must be scores of {name} images, all of them finite")
