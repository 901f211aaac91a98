"""What answers are worth: how often right, how well calibrated, how many flagged, how well outliers are told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from export.detection import auroc, false_positive_rate
from export.shift.answers import Answers
from models.datasets import Labels
from service.calibration import expected_calibration_error, negative_log_likelihood


@dataclass(frozen=True)
class Figures:
    """Over n labelled images: shares in [0, 1], NLL in nats; None of no images.

    confidence: the mean probability of the likeliest label. flagged: as out of distribution; unflagged: all others.
    """

    n: int
    accuracy: float
    confidence: float
    ece_15: float
    nll: float
    flagged: float
    accuracy_unflagged: float | None
    ece_15_unflagged: float | None

    @classmethod
    def of(cls, answers: Answers, labels: Labels) -> "Figures":
        confidences = answers.probabilities.max(axis=1)
        correct = answers.probabilities.argmax(axis=1) == labels
        rest = ~answers.is_ood
        return cls(
            n=len(labels),
            accuracy=float(correct.mean()),
            confidence=float(confidences.mean(dtype=np.float64)),
            ece_15=expected_calibration_error(confidences, correct),
            nll=negative_log_likelihood(answers.probabilities, labels),
            flagged=float(answers.is_ood.mean()),
            accuracy_unflagged=float(correct[rest].mean()) if rest.any() else None,
            ece_15_unflagged=expected_calibration_error(confidences[rest], correct[rest]) if rest.any() else None,
        )


@dataclass(frozen=True)
class Detection:
    """n images from elsewhere against the test set, by the score: AUROC; FPR95, the share of them accepted where 95 %
    of the test set are; flagged, the share above the served threshold.
    """

    n: int
    auroc: float
    fpr_95: float
    flagged: float

    @classmethod
    def of(cls, ordinary: Answers, strange: Answers) -> "Detection":
        scores = ordinary.ood_score, strange.ood_score
        return cls(len(strange.ood_score), auroc(*scores), false_positive_rate(*scores), float(strange.is_ood.mean()))


@dataclass(frozen=True)
class Subject:
    """Which model was measured. calibration: its id."""

    name: str
    version: str
    sha256: str
    calibration: str


@dataclass(frozen=True)
class Report:
    """All figures of a model. n: images of the test set, evenly chosen, of how many. score: the method of detection.

    corruptions: by name, from severity 1 on. shifted: sets from elsewhere of the same classes. elsewhere: all sets.
    """

    model: Subject
    dataset: str
    n: int
    of: int
    seed: int
    score: str
    clean: Figures
    corruptions: Mapping[str, list[Figures]]
    shifted: Mapping[str, Figures]
    elsewhere: Mapping[str, Detection]
    versions: Mapping[str, str]

    def at(self, severity: int, names: Iterable[str] | None = None) -> list[Figures]:
        """Of each corruption that has this severity, of those named or of all; severity 0 is the test set itself."""
        if severity == 0:
            return [self.clean]
        chosen = self.corruptions if names is None else names
        return [self.corruptions[name][severity - 1] for name in chosen if severity <= len(self.corruptions[name])]

    @property
    def severities(self) -> range:
        return range(1, 1 + max(map(len, self.corruptions.values())))


def mean(figures: Iterable[Figures], name: str) -> float | None:
    """Of one field of Figures, each condition counting alike; None where none has it."""
    values = [value for found in figures if (value := vars(found)[name]) is not None]
    return float(np.mean(values)) if values else None
