"""What each model promises: how often its sets may miss, how often it may be wrong, and by what strange images show."""

import math
from dataclasses import dataclass, replace

from service.documents import OodMethod


@dataclass(frozen=True)
class Promises:
    """alphas: the prediction sets offered miss so often; the first is served. risk: of the answers it does not abstain
    from so many may be wrong. ood: a method of export.strangeness. opt_in: methods of export.selection that may change
    answers, and are wanted all the same.

    risks: greater ones, tried in turn where the images are too few for `risk`, or it would have to abstain too often.
    """

    alphas: tuple[float, ...] = (0.05, 0.1, 0.01)
    risk: float = 0.02
    ood: OodMethod = "energy"
    opt_in: frozenset[str] = frozenset()
    risks: tuple[float, ...] = ()


PROMISES: dict[str, Promises] = {
    "digits": Promises(alphas=(0.05, 0.1, 0.01, 0.001), risk=0.003, ood="kl_uniform"),
    "cifar10": Promises(risk=0.02, ood="energy"),
}
# Of somebody's own images nobody knows beforehand what a network makes of them.
OWN = Promises(risks=(0.05, 0.1, 0.2, 0.3))


def carried(promises: Promises, n: int, what: str) -> Promises:
    """Without the coverages that so few held-out images, called `what`, cannot carry; tells which."""
    needed = {alpha: math.ceil(1 / alpha) - 1 for alpha in promises.alphas}
    kept = tuple(alpha for alpha in promises.alphas if math.ceil((n + 1) * (1 - alpha)) <= n)
    for alpha in (alpha for alpha in promises.alphas if alpha not in kept):
        print(f"coverage {1 - alpha:g} is not offered: that takes {needed[alpha]} {what}, not {n}")
    return replace(promises, alphas=kept or promises.alphas)
