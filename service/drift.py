"""Whether a model still keeps its promise, by labels that came after its answers.

Only labels of random answers count, in distribution and of one calibration: for nothing else is there a promise.

Spiegelhalter's Z (1986, "Probabilistic prediction in patient management and clinical trials", equation 4) of the
confidence p in the top label and whether that was right, o:

    Z = Σ (o − p)(1 − 2p) / √(Σ (1 − 2p)² p (1 − p))

is standard normal for a calibrated model, at one look. Whoever looks after each label meets |Z| > 2.58 sooner or later:
with 20 % of calibrated models within 4,000 labels. So the alarm is not given by Z but by a test martingale (Ville 1939;
Shafer et al. 2011, "Test martingales, Bayes factors and p-values"): bets against the model, at the odds that it names
itself. Under a calibrated model, and however often anybody looks, the mean of their capital ever exceeds 1 / α with
probability α at most.
Each bet has an opinion of how wrong the model is, a factor on the odds of being right:

    exp(λ (1 − 2p))      for Z's own departures, λ > 0 for a model too sure of itself
    (p / (1 − p))^(b−1)  for a temperature (Cox 1958: a slope b of the logits), b < 1 for a model too sure of itself

An alarm once raised stays, for the capital of that moment is what counts.

Measured by `python -m tests.simulate_drift`, α = 0.01, looked at after every label. False alarms within 4,000 labels:
0.8 % of 5,000 calibrated models with 6 % errors, 0.5 % of those with 0.5 %, where Z with one look at 50 labels is wrong
in 3.8 %. A model of 94 % that is too sure of itself by four points is noticed after 100, 200 and 500 labels in 57, 89
and 100 % (Z with one look, just then: 79, 95 and 100 %); one of 99.5 %, too sure by 0.4 points, after 1,000 and 4,000
in 57 and 99.6 %. No model is calibrated without fault, and enough labels notice any fault.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import NormalDist
from typing import Any

ALPHA = 0.01
# λ, and b.
TILTS = (1.0, 2.0, -1.0)
SLOPES = (0.4, 0.65, 1.5, 2.5)
# Of the intervals around what was observed: those of Wilson (1927), for one look.
INTERVAL = 0.95
NO_PROMISE = "This model was never calibrated: it promises nothing, and takes no labels."
# With fewer labels even a model that is wrong by five points in a hundred is noticed less than nine times in ten.
FEW = 250
# Confidences are float32: nearer to 1 there is none but 1 itself, at which nothing could be bet.
NEAREST = 2.0**-24


@dataclass(frozen=True)
class Tally:
    """What the labels of one model and calibration have told so far. Times are in s since 1970.

    labels, correct and covered (the label was in the prediction set) count what counts; selected and strange what does
    not: labels of answers that were not chosen at random, and of images out of distribution. confidence is a sum. z_sum
    and z_variance are Z's. bets are the logarithms of each bet's capital, greatest that of the
    most that their mean has been.
    """

    labels: int = 0
    correct: int = 0
    covered: int = 0
    confidence: float = 0.0
    z_sum: float = 0.0
    z_variance: float = 0.0
    bets: tuple[float, ...] = (0.0,) * (len(TILTS) + len(SLOPES))
    greatest: float = 0.0
    selected: int = 0
    strange: int = 0
    since: float | None = None
    # At how many labels, and when.
    alarm_at: int | None = None
    alarm_time: float | None = None

    def counted(self, confidence: float, correct: bool, covered: bool, now: float) -> "Tally":
        """With the label of one more random answer in distribution; confidence is in [0, 1]."""
        p = min(max(confidence, NEAREST), 1 - NEAREST)
        bets = tuple(bet + gain for bet, gain in zip(self.bets, gains(p, correct), strict=True))
        greatest = max(self.greatest, _mean_capital(bets))
        tally = replace(
            self,
            labels=self.labels + 1,
            correct=self.correct + correct,
            covered=self.covered + covered,
            confidence=self.confidence + confidence,
            z_sum=self.z_sum + (correct - p) * (1 - 2 * p),
            z_variance=self.z_variance + (1 - 2 * p) ** 2 * p * (1 - p),
            bets=bets,
            greatest=greatest,
            since=now if self.since is None else self.since,
        )
        if self.alarm_at is None and greatest >= -math.log(ALPHA):
            return replace(tally, alarm_at=tally.labels, alarm_time=now)
        return tally

    def not_counted(self, *, strange: bool) -> "Tally":
        """With the label of one more answer that was strange, or else selected."""
        return replace(self, strange=self.strange + strange, selected=self.selected + (not strange))

    @property
    def z(self) -> float | None:
        """Spiegelhalter's Z; None where no answer could tell anything."""
        return self.z_sum / math.sqrt(self.z_variance) if self.z_variance else None

    @property
    def capital(self) -> float:
        """The logarithm of the mean of the bets' capital: what speaks against the model."""
        return _mean_capital(self.bets)

    @property
    def alarm(self) -> bool:
        return self.alarm_at is not None


def gains(p: float, correct: bool) -> list[float]:
    """By what the logarithm of each bet's capital grows, with an answer of confidence p in (0, 1).

    The likelihood of what came, if the odds p / (1 − p) of being right are off by the bet's factor, over that if not.
    """
    odds = math.log(p) - math.log1p(-p)
    factors = [tilt * (1 - 2 * p) for tilt in TILTS] + [(slope - 1) * odds for slope in SLOPES]
    # ln(1 + (e^f − 1) p), what the factor adds to all likelihoods, without losing what is small beside 1.
    return [(factor if correct else 0.0) - _log_mean(factor, p) for factor in factors]


def _log_mean(factor: float, p: float) -> float:
    """ln(p exp(factor) + 1 − p)."""
    if factor > 0:
        return factor + math.log1p(math.expm1(-factor) * (1 - p))
    return math.log1p(math.expm1(factor) * p)


def _mean_capital(bets: tuple[float, ...]) -> float:
    best = max(bets)
    return best + math.log(sum(math.exp(bet - best) for bet in bets) / len(bets))


def p_value(z: float) -> float:
    """Of Z, on both sides, at one look."""
    return 2 * NormalDist().cdf(-abs(z))


def wilson(successes: int, n: int, level: float = INTERVAL) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def report(tally: Tally, others: int, coverage: float | None) -> dict[str, Any]:
    """What GET /v1/models/{name}/drift tells beside the model's name.

    `others`: labels of other calibrations of the model. `coverage` is promised for its prediction sets; None by a model
    that promises nothing.
    """
    z = tally.z
    return {
        "since": _time(tally.since),
        "labels": {
            "counted": tally.labels,
            "selected": tally.selected,
            "out_of_distribution": tally.strange,
            "other_calibrations": others,
        },
        "accuracy": _kept(tally.correct, tally.labels, tally.confidence / tally.labels if tally.labels else None),
        "coverage": _kept(tally.covered, tally.labels, coverage),
        "spiegelhalter": {"z": z, "p_value": None if z is None else p_value(z)},
        "test": {
            "alpha": ALPHA,
            "capital": _rounded(tally.capital),
            "greatest_capital": _rounded(tally.greatest),
            "alarm_from": 1 / ALPHA,
            "p_value": math.exp(-tally.greatest),
        },
        "alarm": tally.alarm,
        "alarm_since": _time(tally.alarm_time),
        "alarm_at_label": tally.alarm_at,
        "advice": NO_PROMISE if coverage is None else advice(tally),
    }


def advice(tally: Tally) -> str:
    """What to do, in a sentence or two."""
    if not tally.labels:
        return "No label counts yet: choose answers at random, and tell what their images show."
    gap = tally.correct / tally.labels - tally.confidence / tally.labels
    if tally.alarm:
        how = "sure of itself by" if gap < 0 else "unsure by"
        return (
            f"The promise is broken: the model is too {how} {abs(gap):.1%}. Look at what has changed about the images, "
            "and calibrate anew with these labels."
        )
    if tally.labels < FEW:
        return f"Nothing speaks against the promise, but {tally.labels} labels tell little: go on to {FEW} at least."
    return "Nothing speaks against the promise."


def _kept(successes: int, n: int, promised: float | None) -> dict[str, Any]:
    if not n:
        return {"observed": None, "interval": None, "promised": promised}
    return {"observed": successes / n, "interval": wilson(successes, n), "promised": promised}


def _rounded(logarithm: float) -> float:
    """The capital itself, as far as a number in JSON can tell it."""
    return float(f"{math.exp(min(logarithm, 700.0)):.6g}")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
