"""What a network makes of the images it was not trained on, split by what they are for."""

from dataclasses import dataclass

import numpy as np
import torch

from export.strangeness import Array, Seen
from models.datasets import Dataset, Indices, indices_digest, load, normalise, pixels, splits
from models.evaluate import features_and_logits
from models.network import Network
from service.calibration import Labels
from service.documents import SplitRecord
from service.images import Pixels

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


def observe(net: Network, dataset: str) -> Observed:
    """Run the network over every image it was not trained on, and over some it was."""
    data, split = load(dataset), splits(dataset)
    fit, conformal = (_seen(net, data, indices) for indices in (split.fit, split.conformal))
    chosen = split.train[np.linspace(0, len(split.train) - 1, SEEN_IMAGES).astype(int)]
    test_pixels = pixels(dataset, data.test_images)
    test = _run(net, dataset, test_pixels)
    digests, labels = split.digests(), data.train_labels
    held = HeldOut(
        Split(fit.logits, labels[split.fit], digests["fit"]),
        Split(conformal.logits, labels[split.conformal], digests["conformal"]),
        Split(test.logits, data.test_labels, indices_digest(np.arange(len(data.test_images)))),
    )
    return Observed(held, _seen(net, data, chosen), conformal, test_pixels)


def _seen(net: Network, data: Dataset, indices: Indices) -> Seen:
    return _run(net, data.name, pixels(data.name, data.train_images[indices]))


def _run(net: Network, dataset: str, fed: Pixels) -> Seen:
    features, logits = features_and_logits(net, normalise(dataset, fed), torch.device("cpu"))
    return Seen(features.numpy(), logits.numpy())
