"""How often the alarm of service.drift is false, and how soon a true one comes: `python -m tests.simulate_drift`.

Confidences are drawn like those of a network, and labels at the odds that they name, or at others. It is looked at
after every label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.calibration import expected_calibration_error
from service.drift import ALPHA, NEAREST, SLOPES, TILTS

Floats = npt.NDArray[np.floating[Any]]
LOOKS = (50, 100, 200, 500, 1000, 2000, 4000)


@dataclass(frozen=True)
class Simulation:
    """A model that claims `confidences` (N,) and is right with the probabilities `truth` (N,), by default the same."""

    confidences: Floats
    truth: Floats | None = None

    @classmethod
    def like_a_network(cls, errors: float, sharpened: float = 1.0, n: int = 20_000) -> "Simulation":
        """One that errs in so many cases and claims its logits times `sharpened`: above 1 it is too sure of itself.

        Its log odds are spread so that most confidences are near 1, as networks' are.
        """
        rng = np.random.default_rng(0)
        odds = rng.gamma(2.0, 1.0, n)
        low, scale, high = 0.1, 10.0, 1000.0
        for _ in range(60):
            scale = np.sqrt(low * high)
            low, high = (scale, high) if (1 - _sigmoid(scale * odds)).mean() > errors else (low, scale)
        return cls(_sigmoid(sharpened * scale * odds).astype(np.float32).astype(float), _sigmoid(scale * odds))

    @property
    def right(self) -> Floats:
        return self.confidences if self.truth is None else self.truth

    def calibration_error(self) -> float:
        rng = np.random.default_rng(0)
        return expected_calibration_error(self.confidences, rng.random(len(self.right)) < self.right)

    def draws(self, models: int, labels: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """(models, labels) confidences, and 1 where the answer was right, else 0."""
        chosen = rng.integers(0, len(self.confidences), (models, labels))
        return self.confidences[chosen], (rng.random(chosen.shape) < self.right[chosen]).astype(float)

    def capital(self, p: Floats, o: Floats) -> Floats:
        """(models, labels): the logarithm of the mean of the bets' capital after each label."""
        p = p.clip(NEAREST, 1 - NEAREST)
        odds = np.log(p) - np.log1p(-p)
        factors = [tilt * (1 - 2 * p) for tilt in TILTS] + [(slope - 1) * odds for slope in SLOPES]
        bets = [np.cumsum(o * f - np.logaddexp(np.log(p) + f, np.log1p(-p)), axis=1) for f in factors]
        return np.asarray(np.logaddexp.reduce(bets) - np.log(len(bets)))

    def alarms(self, models: int, labels: int, seed: int) -> npt.NDArray[np.bool_]:
        """(models, labels): whether there has been an alarm by then."""
        capital = self.capital(*self.draws(models, labels, np.random.default_rng(seed)))
        return np.asarray(np.maximum.accumulate(capital >= -np.log(ALPHA), axis=1))

    def z(self, models: int, labels: int, seed: int) -> Floats:
        """(models, labels): Spiegelhalter's Z after each label."""
        p, o = self.draws(models, labels, np.random.default_rng(seed))
        p = p.clip(NEAREST, 1 - NEAREST)
        variance = np.cumsum((1 - 2 * p) ** 2 * p * (1 - p), axis=1)
        return np.asarray(np.cumsum((o - p) * (1 - 2 * p), axis=1) / np.sqrt(variance))

    def careless_alarms(self, models: int, labels: int, seed: int) -> float:
        """In what share the fixed test of α = 0.01, done anew after each label, is significant at some time."""
        return float((np.abs(self.z(models, labels, seed)) > 2.5758).any(axis=1).mean())


def overconfident() -> Simulation:
    """A network of 94 % whose logits were never scaled."""
    return Simulation.like_a_network(0.06, sharpened=2.2)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def main() -> None:
    print(f"{'':34} labels: " + " ".join(f"{n:>6}" for n in LOOKS))
    for name, simulation in {
        "calibrated, 6 % errors": Simulation.like_a_network(0.06),
        "calibrated, 0.5 % errors": Simulation.like_a_network(0.005),
        "too sure, 6 % errors": overconfident(),
        "too sure, 0.5 % errors": Simulation.like_a_network(0.005, 2.2),
        "too unsure, 6 % errors": Simulation.like_a_network(0.06, 0.6),
    }.items():
        models = 5000 if name.startswith("calibrated") else 2000
        looks = np.array(LOOKS) - 1
        shares = np.concatenate([simulation.alarms(500, LOOKS[-1], seed)[:, looks] for seed in range(models // 500)])
        fixed = np.abs(simulation.z(1000, LOOKS[-1], 99))[:, looks] > 2.5758
        print(f"{name} (ECE {simulation.calibration_error():.3f})")
        print(f"{'':24}alarm by then:     " + " ".join(f"{share:6.3f}" for share in shares.mean(axis=0)))
        print(f"{'':24}Z, one look then:  " + " ".join(f"{share:6.3f}" for share in fixed.mean(axis=0)))
        print(f"{'':24}Z, looked at always: {simulation.careless_alarms(1000, LOOKS[-1], 98):.3f}")


if __name__ == "__main__":
    main()
