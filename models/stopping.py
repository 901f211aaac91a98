"""Early stopping (Prechelt 1998): when further passes no longer help, by images that are not trained on."""

from collections.abc import Sequence

History = Sequence[dict[str, float]]


def best_epoch(history: History) -> int:
    """The pass, counted from 1, after which the held-out NLL was least; the first of equals. Raises ValueError."""
    return min(range(len(history)), key=lambda epoch: history[epoch]["nll"]) + 1


def exhausted(history: History, patience: int) -> bool:
    """Whether so many passes in a row brought no better one."""
    return bool(history) and len(history) - best_epoch(history) >= patience
