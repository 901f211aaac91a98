"""What turns logits into calibrated probabilities: one function a method, by the parameters that a fit found.

`export.calibrators` has the same functions for torch, which become part of the exported graph.
Every method but `vector` is one increasing map of the probabilities and therefore keeps the order of the classes.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from service.calibration import Floats, softmax

Params = Mapping[str, float | Sequence[float]]


def identity(logits: Floats, params: Params) -> Floats:
    """The softmax as it is. (N, C) → (N, C)."""
    return softmax(logits)


def map_temperature(logits: Floats, params: Params) -> Floats:
    """softmax(z / T) (Guo et al. 2017, equation 9)."""
    return softmax(logits / _number(params, "temperature"))


def beta_pooled(logits: Floats, params: Params) -> Floats:
    """q_k ∝ σ(c + a ln p_k − b ln(1 − p_k)), p = softmax(z / T): one beta map (Kull et al. 2017) for all classes."""
    inside, outside = log_odds_parts(logits / _number(params, "temperature"))
    a, b, c = (_number(params, name) for name in "abc")
    with np.errstate(over="ignore"):
        return _normalised(1 / (1 + np.exp(-(c + a * inside - b * outside))))


def isotonic_pooled(logits: Floats, params: Params) -> Floats:
    """q_k ∝ R(p_k), p = softmax(z / T), R linear between (knots, values)."""
    p = map_temperature(logits, params)
    return _normalised(np.interp(p, np.asarray(params["knots"]), np.asarray(params["values"])))


def vector(logits: Floats, params: Params) -> Floats:
    """softmax(w * z + b), a weight and a bias for each class (Guo et al. 2017, section 4.2)."""
    return softmax(logits * np.asarray(params["weights"]) + np.asarray(params["biases"]))


METHODS: dict[str, Callable[[Floats, Params], Floats]] = {
    "identity": identity,
    "map_temperature": map_temperature,
    "beta_pooled": beta_pooled,
    "isotonic_pooled": isotonic_pooled,
    "vector": vector,
}
KEEPS_ORDER = frozenset(METHODS) - {"vector"}


def probabilities(method: str, logits: Floats, params: Params) -> Floats:
    """(N, C) logits → (N, C), rows sum to 1."""
    return METHODS[method](logits, params)


def initializers(method: str, params: Params) -> dict[str, npt.NDArray[np.float32]]:
    """What the exported graph computes with, by name: the parameters, and of a piecewise map each piece from 0 on."""
    given = {name: np.asarray(value, np.float64) for name, value in params.items()}
    if method == "isotonic_pooled":
        knots, values = given.pop("knots"), given.pop("values")
        widths = np.diff(knots)
        given |= {"starts": knots[:-1], "widths": widths, "slopes": np.diff(values) / widths}
    return {name: value.astype(np.float32) for name, value in given.items()}


def log_odds_parts(logits: Floats) -> tuple[Floats, Floats]:
    """The logarithms of p and 1 − p, (N, C) each, of softmax(logits); 1 − p is the sum of the others, no difference."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = np.log(exponentials.sum(axis=1, keepdims=True))
    others = np.stack([np.delete(exponentials, k, axis=1).sum(axis=1) for k in range(logits.shape[1])], axis=1)
    return shifted - total, np.log(np.maximum(others, np.finfo(others.dtype).tiny)) - total


def _number(params: Params, name: str) -> float:
    value = params[name]
    assert isinstance(value, float | int)
    return value


def _normalised(scores: Floats) -> Floats:
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))
