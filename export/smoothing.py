"""The smooth calibration error, which has no bins to choose."""

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.sparse import csr_array

from service.calibration import Bools

Doubles = npt.NDArray[np.float64]

# 2,049 points, half a thousandth apart: far finer than any bandwidth that 10,000 images support.
INTERVALS = 2048
HALVINGS = 14


def smooth_calibration_error(confidences: Doubles, correct: Bools) -> Doubles:
    """The smECE of Błasiok & Nakkiran 2023, definitions 5 and 7. confidences (N,), correct (B, N) → (B,).

    smECE_σ = ∫ |1/N Σ (f_i − y_i) K_σ(t, f_i)| dt with K the Gaussian kernel reflected at 0 and 1; it falls as σ
    grows, and the figure is the one at which smECE_σ = σ. Residuals are laid on a grid of 1/2048.
    """
    residuals = _spread(confidences, confidences[None])
    coefficients = _cosines(residuals - _spread(confidences, correct.astype(np.float64)))
    low, high = np.zeros(len(coefficients)), np.ones(len(coefficients))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        wider = _error(coefficients, middle) > middle
        low, high = np.where(wider, middle, low), np.where(wider, high, middle)
    return _error(coefficients, high)


def _spread(places: Doubles, masses: Doubles) -> Doubles:
    """Masses (B, N) at places (N,) in [0, 1], shared between the two nearest grid points → mean mass (B, G)."""
    n = len(places)
    at = places * INTERVALS
    left = np.minimum(at.astype(np.intp), INTERVALS - 1)
    share = np.concatenate([1 - (at - left), at - left])
    grid = csr_array((share / n, (np.tile(np.arange(n), 2), np.concatenate([left, left + 1]))), (n, INTERVALS + 1))
    return np.asarray(masses @ grid)


def _cosines(masses: Doubles) -> Doubles:
    """Σ_n m_n cos(πkn/G) for every k. (B, G) → (B, G)."""
    masses[:, [0, -1]] *= 2
    return np.asarray(dct(masses, type=1) / 2)


def _error(coefficients: Doubles, widths: Doubles) -> Doubles:
    """smECE_σ: the cosines are the eigenfunctions of the reflected kernel, with eigenvalues exp(−(πkσ)²/2)."""
    decay = np.exp(-((np.pi * np.arange(INTERVALS + 1) * widths[:, None]) ** 2) / 2)
    density = np.abs(dct(coefficients * decay, type=1))
    return np.asarray((density[:, :-1] + density[:, 1:]).mean(1) / 2)
