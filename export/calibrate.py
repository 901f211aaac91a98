"""Fit what a response promises on held-out images, and see that it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from export import gates, strangeness
from export.conformal import least_risk
from export.gates import CalibrationError, CalibratorError, Verdict
from export.graph import Answering
from export.promises import Promises
from export.selection import Selection, cross_calibrated, select
from export.splits import HeldOut, Split
from export.strangeness import Array, Seen
from models.network import Network
from service.audit import array_digest
from service.calibration import Floats, Labels, lac_threshold
from service.calibrators import probabilities
from service.documents import Abstention, Conformal, Ood, OodMethod

# One in a hundred ordinary images is flagged as strange.
ID_TPR = 0.99
# The risk of an abstention holds with 1 − DELTA certainty.
DELTA = 0.05


@dataclass(frozen=True)
class Strangeness:
    """How the graph tells strange images: the document's part, and the arrays it names."""

    ood: Ood
    params: Mapping[str, Array]


@dataclass(frozen=True)
class Fitted:
    """How probabilities are calibrated, what is promised of them, and the gates that this has passed or not."""

    selection: Selection
    conformal: list[Conformal]
    abstention: Abstention
    verdicts: tuple[Verdict, ...]

    def calibrated(self, logits: Floats) -> Floats:
        """(N, C) logits → probabilities, in the graph's float32."""
        return calibrated(self.selection, logits)

    def answering(self, strange: Strangeness) -> Answering:
        chosen, ood = self.selection, strange.ood
        threshold = self.conformal[0].threshold
        return Answering(chosen.chosen, chosen.params, threshold, ood.method, ood.threshold, strange.params)


def fit(held: HeldOut, promises: Promises) -> Fitted:
    """Choose and fit a method, and thresholds for what it gives. Raises CalibrationError where a gate fails.

    A method that does not improve on the raw network, on images it was not fitted on, becomes the identity.
    """
    gates.check_disjoint({"test" if name == "eval" else name: digest for name, digest in held.digests().items()})
    _check_finite(held)
    chosen = _selected(held.fit, promises)
    tried = _improvement(chosen, held)
    improves = all(verdict.passed for verdict in tried)
    selection = chosen if improves else _identity(chosen)
    gates.check_parameters(selection.params)
    test = calibrated(selection, held.eval.logits)
    gates.check_spread(calibrated(_identity(selection), held.eval.logits), test)
    verdicts = (
        *(tried if improves else _improvement(selection, held)),
        *gates.calibration(test, held.eval.labels),
        gates.argmax_kept(selection.chosen, held.eval.logits, test),
    )
    gates.require(verdicts, "" if improves else _fallen_back(chosen, tried))
    confident, labels = calibrated(selection, held.conformal.logits), held.conformal.labels
    levels, abstention = _conformal(confident, labels, promises), _abstention(confident, labels, promises)
    return Fitted(selection, levels, abstention, verdicts)


def calibrated(selection: Selection, logits: Floats) -> Floats:
    """(N, C) logits → probabilities, in the graph's float32."""
    wide = np.asarray(logits, np.float64)
    return probabilities(selection.chosen, wide, selection.params).astype(np.float32)


def fit_strangeness(net: Network, method: OodMethod, training: Seen, conformal: Seen) -> Strangeness:
    """What tells strange images, by `training`, and the threshold that ID_TPR of `conformal` stay under."""
    params = strangeness.FITS[method](net, training)
    tensors = {name: torch.from_numpy(array) for name, array in params.items()}
    score = strangeness.SCORES[method](
        torch.from_numpy(conformal.features), torch.from_numpy(conformal.logits), tensors
    )
    digests = {name: array_digest(array) for name, array in params.items()}
    threshold = float(np.quantile(score.numpy(), ID_TPR))
    return Strangeness(Ood(method=method, threshold=threshold, id_tpr=ID_TPR, parameters_sha256=digests), params)


def _check_finite(held: HeldOut) -> None:
    for name, split in vars(held).items():
        if not np.isfinite(split.logits).all():
            raise CalibratorError(f"logits of the {name} split are not finite: the network is damaged, train it again")


def _selected(split: Split, promises: Promises) -> Selection:
    try:
        return select(split.logits, split.labels, opt_in=promises.opt_in)
    except ValueError as error:
        # Too few images, or a loss that has no end to it.
        raise CalibrationError(f"no method can be fitted: {error}") from error


def _identity(selection: Selection) -> Selection:
    return replace(selection, chosen="identity", params={})


def _fallen_back(chosen: Selection, tried: Sequence[Verdict]) -> str:
    failed = "; ".join(verdict.sentence for verdict in tried if not verdict.passed)
    return (
        f"the network is taken uncalibrated, for {chosen.chosen} does not improve on it for certain ({failed}); then "
    )


def _improvement(selection: Selection, held: HeldOut) -> tuple[Verdict, Verdict]:
    """Gate 1, on all images but the test set, which is touched once: each calibrated by what was fitted without it."""
    fit, conformal = held.fit, held.conformal
    identity = _identity(selection)
    without = cross_calibrated(selection.chosen, fit.logits, fit.labels, selection.seed)
    raw = np.concatenate([calibrated(identity, fit.logits), calibrated(identity, conformal.logits)])
    anew = np.concatenate([without.astype(np.float32), calibrated(selection, conformal.logits)])
    return gates.improvement(raw, anew, np.concatenate([fit.labels, conformal.labels]))


def _conformal(p: Floats, labels: Labels, promises: Promises) -> list[Conformal]:
    try:
        return [
            Conformal(alpha=alpha, threshold=lac_threshold(p, labels, alpha), n=len(labels))
            for alpha in promises.alphas
        ]
    except ValueError as error:
        raise CalibrationError(f"{error}: promise less coverage or hold back more") from error


def _abstention(p: Floats, labels: Labels, promises: Promises) -> Abstention:
    risk, found = least_risk(p.max(1), p.argmax(1) == labels, (promises.risk, *promises.risks), DELTA)
    return Abstention(
        risk=risk,
        threshold=found.threshold,
        delta=DELTA,
        coverage=found.coverage,
        risk_bound=found.bound,
        n=len(labels),
    )
