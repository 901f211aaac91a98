"""What each model promises: how often its sets may miss, how often it may be wrong, and by what strange images show."""

from dataclasses import dataclass

from service.documents import OodMethod


@dataclass(frozen=True)
class Promises:
    """alphas: the prediction sets offered miss so often; the first is served. risk: of the answers it does not abstain
    from so many may be wrong. ood: a method of export.strangeness. opt_in: methods of export.selection that may change
    answers, and are wanted all the same.
    """

    alphas: tuple[float, ...] = (0.05, 0.1, 0.01)
    risk: float = 0.02
    ood: OodMethod = "energy"
    opt_in: frozenset[str] = frozenset()


PROMISES: dict[str, Promises] = {
    "digits": Promises(alphas=(0.05, 0.1, 0.01, 0.001), risk=0.003, ood="energy"),
    "cifar10": Promises(risk=0.02, ood="energy"),
}
