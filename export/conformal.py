from typing import NamedTuple
import numpy as np
from scipy.stats import beta


class Risk(NamedTuple):
    threshold: float
    coverage: float
    bound: float


def risk_control(confidences, correct, risk, delta):
    order = np.argsort(-confidences)
    c = confidences[order]
    e = np.cumsum(~correct[order])
    n = np.arange(1, len(c) + 1)
    ub = np.where(e < n, beta.ppf(1 - delta, e + 1, np.maximum(n - e, 1)), 1.0)
    ok = np.flatnonzero(ub <= risk)
    if not len(ok):
        return Risk(1.0, 0.0, 1.0)
    k = ok[-1]
    return Risk(float(c[k]), float((confidences >= c[k]).mean()), float(ub[k]))
