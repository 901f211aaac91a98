"""Fit what a response promises on held-out images, and measure it on the test set."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.datasets import indices_digest, load, normalise, pixels, splits
from models.evaluate import logits
from service.bundle import Conformal, Figures, Metrics, NullFigures, Ood, SplitRecord
from service.calibration import (
    Floats,
    Labels,
    brier_score,
    calibration_error_null,
    energy,
    expected_calibration_error,
    fit_temperature,
    lac_threshold,
    negative_log_likelihood,
    softmax,
)
from service.images import Pixels

# The first coverage is the one served; the others are there for whoever wants another.
ALPHAS = (0.05, 0.1, 0.01)
# One in a hundred ordinary images is flagged as strange.
ID_TPR = 0.99


@dataclass(frozen=True)
class Held:
    """A split no weight was fitted on: pixels (N, H, W, 3), the network's raw logits (N, C), labels (N,)."""

    pixels: Pixels
    logits: npt.NDArray[np.float32]
    labels: Labels
    index_sha256: str

    def record(self) -> SplitRecord:
        errors = int((self.logits.argmax(1) != self.labels).sum())
        return SplitRecord(n=len(self.labels), n_errors=errors, index_sha256=self.index_sha256)


@dataclass(frozen=True)
class HeldOut:
    """T is fitted on `fit`, thresholds on `conformal`; `eval` is the test set and only reported on."""

    fit: Held
    conformal: Held
    eval: Held


@dataclass(frozen=True)
class Fitted:
    """The parameters of the graph."""

    temperature: float
    conformal: list[Conformal]
    ood: Ood

    @property
    def set_threshold(self) -> float:
        return self.conformal[0].threshold


def held_out(net: nn.Module, dataset: str) -> HeldOut:
    """Run the network over every image it was not trained on."""
    data = load(dataset)
    split = splits(dataset)

    def held(images: Pixels, labels: Labels, index_sha256: str) -> Held:
        fed = pixels(dataset, images)
        answers = logits(net, normalise(dataset, fed), torch.device("cpu"))
        return Held(fed, answers.numpy(), labels, index_sha256)

    digests = split.digests()
    return HeldOut(
        held(data.train_images[split.fit], data.train_labels[split.fit], digests["fit"]),
        held(data.train_images[split.conformal], data.train_labels[split.conformal], digests["conformal"]),
        held(data.test_images, data.test_labels, indices_digest(np.arange(len(data.test_images)))),
    )


def fit(held: HeldOut) -> Fitted:
    """MAP temperature on the fit split; prediction-set and energy thresholds on the conformal split."""
    temperature = fit_temperature(held.fit.logits, held.fit.labels)
    probabilities = softmax(held.conformal.logits / np.float32(temperature))
    n = len(held.conformal.labels)
    conformal = [
        Conformal(alpha=alpha, threshold=lac_threshold(probabilities, held.conformal.labels, alpha), n=n)
        for alpha in ALPHAS
    ]
    threshold = float(np.quantile(energy(held.conformal.logits), ID_TPR))
    return Fitted(temperature, conformal, Ood(method="energy", threshold=threshold, id_tpr=ID_TPR))


def measure(raw: Floats, calibrated: Floats, labels: Labels) -> Metrics:
    """Score probabilities (N, C) before and after calibration against labels (N,)."""
    null = calibration_error_null(calibrated.max(1))
    return Metrics(
        before=_figures(raw, labels),
        after=_figures(calibrated, labels),
        null=NullFigures(ece_15_mean=null.mean, ece_15_p95=null.p95, ece_15_p99=null.p99),
    )


def _figures(probabilities: Floats, labels: Labels) -> Figures:
    correct = probabilities.argmax(1) == labels
    return Figures(
        n=len(labels),
        accuracy=float(correct.mean()),
        nll=negative_log_likelihood(probabilities, labels),
        brier=brier_score(probabilities, labels),
        ece_15=expected_calibration_error(probabilities.max(1), correct),
    )
