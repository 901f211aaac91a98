"""Models whose truth is known: labels drawn from probabilities, and logits that exaggerate by a known factor."""

import numpy as np

from service.calibration import Floats, Labels, softmax


def draw(probabilities: Floats, rng: np.random.Generator) -> Labels:
    """A label for each row, with the row's probabilities. (N, C) → (N,)."""
    below = probabilities.cumsum(1) < rng.random(len(probabilities))[:, None]
    return np.array(below.sum(1).clip(max=probabilities.shape[1] - 1))


def honest_logits(n: int, classes: int, rng: np.random.Generator, sharpness: float = 3.0) -> Floats:
    """Logits of a model that knows some images well and others hardly. (N, C)."""
    return np.asarray(rng.normal(size=(n, classes)) * rng.uniform(0.3, 1.5, (n, 1)) * sharpness)


def exaggerated(
    n: int, classes: int, temperature: float, rng: np.random.Generator, sharpness: float = 3.0
) -> tuple[Floats, Labels]:
    """Logits (N, C) that mean what they say once divided by `temperature`, and labels (N,)."""
    honest = honest_logits(n, classes, rng, sharpness)
    return honest * temperature, draw(softmax(honest), rng)


def near_perfect(n: int, errors: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Calibrated logits (N, 10) of a model right in more than 99 of 100 cases, with so many errors. Labels (N,)."""
    logits = rng.normal(size=(n, 10))
    logits[np.arange(n), rng.integers(0, 10, n)] += rng.normal(11, 2, n)
    labels = draw(softmax(logits), rng)
    while (labels != logits.argmax(1)).sum() != errors:
        labels = draw(softmax(logits), rng)
    return logits, labels
