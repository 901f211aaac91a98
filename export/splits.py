"""What a network makes of the images it was not trained on, split by what they are for."""

from dataclasses import dataclass

import numpy as np
import torch

from export.strangeness import Array, Seen
from models.datasets import indices_digest, standardise
from models.evaluate import features_and_logits
from models.network import Network
from models.task import Task
from service.calibration import Labels
from service.documents import SplitRecord
from service.images import InputSpec, Pixels

# Training images by which a network's way of seeing is known.
SEEN_IMAGES = 10_000


@dataclass(frozen=True)
class Split:
    """Images that no weight was fitted on: raw logits (N, C), labels (N,), and a digest of which images they are."""

    logits: Array
    labels: Labels
    index_sha256: str

    def record(self) -> SplitRecord:
        errors = int((self.logits.argmax(1) != self.labels).sum())
        return SplitRecord(n=len(self.labels), n_errors=errors, index_sha256=self.index_sha256)


@dataclass(frozen=True)
class HeldOut:
    """The calibration is fitted on `fit`, thresholds on `conformal`; `eval` is the test set and only reported on."""

    fit: Split
    conformal: Split
    eval: Split

    def digests(self) -> dict[str, str]:
        return {name: split.index_sha256 for name, split in vars(self).items()}


@dataclass(frozen=True)
class Tested:
    """What an exported graph answers to the images of `eval`: logits (N, C), calibrated probabilities (N, C)."""

    logits: Array
    probabilities: Array


@dataclass(frozen=True)
class Observed:
    """A network at work: on held-out images, on some it was trained on, and the pixels of the test set."""

    held: HeldOut
    training: Seen
    conformal: Seen
    test_pixels: Pixels


def observe(net: Network, task: Task) -> Observed:
    """Run the network over every image it was not trained on, and over some it was."""
    fit, conformal, test = (task.part(split) for split in ("fit", "conformal", "test"))
    training = _run(net, task.spec, task.part("train").some(SEEN_IMAGES).pixels())
    thresholds = _run(net, task.spec, conformal.pixels())
    test_pixels = test.pixels()
    # Of a data set of the zoo all of the published test images.
    of_test = task.digests.get("test") or indices_digest(np.arange(len(test.labels)))
    held = HeldOut(
        Split(_run(net, task.spec, fit.pixels()).logits, fit.labels, task.digests["fit"]),
        Split(thresholds.logits, conformal.labels, task.digests["conformal"]),
        Split(_run(net, task.spec, test_pixels).logits, test.labels, of_test),
    )
    return Observed(held, training, thresholds, test_pixels)


def _run(net: Network, spec: InputSpec, fed: Pixels) -> Seen:
    features, logits = features_and_logits(net, standardise(spec, fed), torch.device("cpu"))
    return Seen(features.numpy(), logits.numpy())
