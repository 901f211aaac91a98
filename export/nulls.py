"""How far from 0 each figure of a perfectly calibrated model lies, by the chance of its labels alone."""

from collections.abc import Iterator, Mapping

import numpy as np

from export.scoring import METRICS, Metric
from service.calibration import Floats, Labels, Null

DRAWS = 1000
# Bounds memory: 100 labellings of 10,000 images are 8 MB.
AT_ONCE = 100


def nulls(
    probabilities: Floats, metrics: Mapping[str, Metric] = METRICS, draws: int = DRAWS, seed: int = 0
) -> dict[str, Null]:
    """Mean, 95th and 99th percentile of each metric, were probabilities (N, C) the chances of the labels.

    Labels are redrawn from each image's whole vector of probabilities, `draws` times, the same for all metrics.
    """
    drawn: dict[str, list[Floats]] = {name: [] for name in metrics}
    for labels in redrawn(probabilities, draws, seed):
        for name, metric in metrics.items():
            drawn[name].append(metric(probabilities, labels))
    return {name: _null(np.concatenate(figures)) for name, figures in drawn.items()}


def redrawn(probabilities: Floats, draws: int, seed: int) -> Iterator[Labels]:
    """Labels drawn from each row's probabilities (N, C): blocks (≤ 100, N), `draws` labellings together."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(np.asarray(probabilities, np.float64), axis=1).T
    # Rows of float32 need not sum to 1: the last class of positive probability takes what is left.
    steps = steps / steps[-1]
    for start in range(0, draws, AT_ONCE):
        chances = rng.random((min(AT_ONCE, draws - start), len(probabilities)))
        labels = np.zeros(chances.shape, np.intp)
        for step in steps[:-1]:
            labels += chances >= step
        yield labels


def _null(figures: Floats) -> Null:
    p95, p99 = np.percentile(figures, (95, 99))
    return Null(float(figures.mean()), float(p95), float(p99))
