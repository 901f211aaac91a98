"""One fit for each method of service.calibrators, under the same name: (logits (N, C), labels (N,)) → parameters.

Logits, not probabilities: a temperature fitted on the logarithm of rounded probabilities comes out too low.
All arithmetic is in float64, and every fit ends where its gradient vanishes or raises FitError.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, logsumexp, softmax
from sklearn.isotonic import isotonic_regression

from service.calibration import Floats, Labels, fit_temperature
from service.calibrators import Params

Doubles = npt.NDArray[np.float64]
Loss = Callable[[Doubles], tuple[float, Doubles]]
# The second derivatives as well.
ConvexLoss = Callable[[Doubles], tuple[float, Doubles, Doubles]]

# ln a, ln b ~ N(0, 0.5²) as ln T; c ~ N(0, 1): what a handful of errors leaves open stays near the identity.
BETA_PRIOR_SD = np.array([0.5, 0.5, 1.0])
# Of a class's weight, as a share of 1 / T, and of its bias, in nats.
VECTOR_PRIOR_SD = (0.25, 0.5)
MOST_KNOTS = 64
# Shares of up to a million images differ by more, if they do.
ROUNDING = 1e-13
# Of the mean loss, in nats an image.
GRADIENT_TOLERANCE = 1e-7
NEWTON_STEPS = 50
# A step this short gains less than rounding hides.
SHORTEST = 1e-6


class FitError(ValueError):
    """A method whose parameters could not be found."""


def identity(logits: Floats, labels: Labels) -> Params:
    """Nothing to find."""
    return {}


def map_temperature(logits: Floats, labels: Labels) -> Params:
    """The temperature of greatest posterior density, ln T ~ N(0, 0.5²); see service.calibration.fit_temperature."""
    return {"temperature": fit_temperature(logits, labels)}


def beta_pooled(logits: Floats, labels: Labels) -> Params:
    """One beta map for all classes (Kull et al. 2017, equation 4, pooled), on top of the MAP temperature.

    q_k ∝ σ(c + a ln p_k − b ln(1 − p_k)) of greatest posterior density under ln a, ln b ~ N(0, 0.5²), c ~ N(0, 1):
    a and b are positive, and without errors the map stays near the identity a = b = 1, c = 0.
    """
    temperature = fit_temperature(logits, labels)
    inside, outside = _log_parts(np.asarray(logits, np.float64) / temperature)
    a, b, c = converged(_beta_loss(inside, outside, labels), np.zeros(3))
    return {"temperature": temperature, "a": float(np.exp(a)), "b": float(np.exp(b)), "c": float(c)}


def isotonic_pooled(logits: Floats, labels: Labels) -> Params:
    """R(p) = P[Y = k | p_k = p], one increasing map for all classes (Kuleshov et al. 2018, section 3.4, pooled).

    p = softmax(z / T) with the MAP temperature. R is the centred isotonic regression (Oron & Flournoy 2017) of the
    N·C indicators 1[y = k] on p_k: it passes through the mean of each block of the isotonic regression and is linear
    between. It begins at (0, 0), so that a class nobody was in keeps its share of a small probability, and ends at
    (1, 1), or at the block's own value where the network says exactly 1 and errs.
    """
    temperature = fit_temperature(logits, labels)
    p = softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    knots, values = _pinned(*_thinned(*centred_isotonic(p.ravel(), _indicators(labels, p.shape[1]).ravel())))
    return {"temperature": temperature, "knots": knots.tolist(), "values": values.tolist()}


def vector(logits: Floats, labels: Labels) -> Params:
    """softmax(w * z + b) (Guo et al. 2017, section 4.2), drawn towards the MAP temperature by a ridge.

    The ridge is the prior w_k ~ N(1/T, (0.25/T)²), b_k ~ N(0, 0.5²): one standard deviation for each class is a
    quarter of its weight and half a nat. It does not depend on N, so that it fades as images come in.
    The penalised loss is strictly convex. It can change the argmax.
    """
    precision = 1 / fit_temperature(logits, labels)
    classes = logits.shape[1]
    ridge = np.repeat([VECTOR_PRIOR_SD[0] * precision, VECTOR_PRIOR_SD[1]], classes)
    steps = newton(_vector_loss(np.asarray(logits, np.float64), labels, precision, ridge), np.zeros(2 * classes))
    weights, biases = np.split(steps * ridge, 2)
    return {"weights": (precision + weights).tolist(), "biases": biases.tolist()}


FITS: dict[str, Callable[[Floats, Labels], Params]] = {
    "identity": identity,
    "map_temperature": map_temperature,
    "beta_pooled": beta_pooled,
    "isotonic_pooled": isotonic_pooled,
    "vector": vector,
}


def centred_isotonic(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Blocks of the isotonic regression of y on x, (N,) each → mean x, mean y and size of each block, increasing."""
    places, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(place, weights=y) / counts, sample_weight=counts)
    # Two blocks of the same mean may differ by their rounding, and the map would be level between them.
    starts = np.flatnonzero(np.concatenate([[True], np.diff(fitted) > ROUNDING]))
    sizes = np.add.reduceat(counts, starts).astype(np.float64)
    return np.add.reduceat(places * counts, starts) / sizes, fitted[starts], sizes


def _thinned(x: Doubles, y: Doubles, sizes: Doubles) -> tuple[Doubles, Doubles]:
    """Join the two neighbours that differ least until the blocks and the two ends are at most 64 knots.

    Differ as in Ward 1963: by what joining adds to the squared error.
    """
    while len(x) > MOST_KNOTS - 2:
        costs = sizes[:-1] * sizes[1:] / (sizes[:-1] + sizes[1:]) * np.diff(y) ** 2
        at = int(costs.argmin())
        weights = sizes[at : at + 2]
        x[at + 1], y[at + 1] = (np.average(part[at : at + 2], weights=weights) for part in (x, y))
        sizes[at + 1] = weights.sum()
        x, y, sizes = (np.delete(part, at) for part in (x, y, sizes))
    return x, y


def _pinned(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Between (0, 0) and (1, 1), without the blocks of value 0 and 1 that would make the map flat."""
    inner = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    top = float(y[-1]) if x[-1] == 1 else 1.0
    return np.concatenate([[0.0], x[inner], [1.0]]), np.concatenate([[0.0], y[inner], [top]])


def converged(loss: Loss, start: Doubles) -> Doubles:
    """Where a mean loss is least, by L-BFGS. Raises FitError if its gradient there is more than 1e-7."""
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 0.0, "gtol": GRADIENT_TOLERANCE / 10, "maxcor": 30}
    found = np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)
    return _level(found, loss(found)[1])


def newton(loss: ConvexLoss, start: Doubles) -> Doubles:
    """Where a strictly convex mean loss is least, by damped Newton steps (Boyd & Vandenberghe 2004, algorithm 9.5).

    Raises FitError if its gradient there is more than 1e-7.
    """
    found, (value, gradient, curvature) = start, loss(start)
    for _ in range(NEWTON_STEPS):
        if np.abs(gradient).max() <= GRADIENT_TOLERANCE / 100:
            break
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > SHORTEST and loss(found - length * step)[0] > value - length * gradient @ step / 4:
            length /= 2
        if length <= SHORTEST:
            break
        found = found - length * step
        value, gradient, curvature = loss(found)
    return _level(found, gradient)


def _level(found: Doubles, gradient: Doubles) -> Doubles:
    steepest = float(np.abs(gradient).max())
    if not steepest <= GRADIENT_TOLERANCE:
        raise FitError(f"the fit stopped where the loss still falls by {steepest:.1e} nats: look for odd logits")
    return found


def _beta_loss(inside: Doubles, outside: Doubles, labels: Labels) -> Loss:
    """Mean of −ln q_y and the prior's part, by (ln a, ln b, c). inside, outside: ln p and ln(1 − p), (N, C)."""
    n, hits = len(labels), _indicators(labels, inside.shape[1])

    def loss(theta: Doubles) -> tuple[float, Doubles]:
        a, b, c = np.exp(theta[0]), np.exp(theta[1]), theta[2]
        odds = c + a * inside - b * outside
        scores = log_expit(odds)
        likelihood = (log_softmax(scores, axis=1) * hits).sum()
        slope = (softmax(scores, axis=1) - hits) * expit(-odds)
        gradient = np.array([a * (slope * inside).sum(), -b * (slope * outside).sum(), slope.sum()])
        penalty = ((theta / BETA_PRIOR_SD) ** 2).sum() / 2
        return float(penalty - likelihood) / n, (gradient + theta / BETA_PRIOR_SD**2) / n

    return loss


def _vector_loss(logits: Doubles, labels: Labels, precision: float, ridge: Doubles) -> ConvexLoss:
    """Mean of −ln q_y and the ridge's part, by (weights − precision, biases) / ridge, (2C,)."""
    n, classes = logits.shape
    hits = _indicators(labels, classes)
    centre = np.repeat([precision, 0.0], classes)
    # Each class's weight acts on its logit, its bias on 1.
    inputs = np.concatenate([logits, np.ones_like(logits)], axis=1)

    def loss(steps: Doubles) -> tuple[float, Doubles, Doubles]:
        theta = centre + steps * ridge
        scores = logits * theta[:classes] + theta[classes:]
        q, likelihood = softmax(scores, axis=1), (log_softmax(scores, axis=1) * hits).sum()
        gradient = (np.tile(q - hits, 2) * inputs).sum(0) * ridge + steps
        expected = np.tile(q, 2) * inputs
        # A class's weight and bias meet in their own class beside meeting all others.
        own = np.einsum("nik,njk->ijk", expected.reshape(n, 2, classes), inputs.reshape(n, 2, classes))
        curvature = np.block([[np.diag(own[i, j]) for j in (0, 1)] for i in (0, 1)]) - expected.T @ expected
        curvature = curvature * np.outer(ridge, ridge) + np.eye(2 * classes)
        return float(steps @ steps / 2 - likelihood) / n, gradient / n, curvature / n

    return loss


def _log_parts(logits: Doubles) -> tuple[Doubles, Doubles]:
    """The logarithms of p and 1 − p, (N, C) each, of softmax(logits); 1 − p is the sum of the others, no difference."""
    total = logsumexp(logits, axis=1, keepdims=True)
    others = [logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(logits.shape[1])]
    return logits - total, np.stack(others, axis=1) - total


def _indicators(labels: Labels, classes: int) -> Doubles:
    """(N,) → (N, C), 1 at the label."""
    return np.eye(classes)[labels]
