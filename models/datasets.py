"""MNIST and CIFAR-10 in the field's canonical order, split by recorded index."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from service.images import InputSpec, to_pixels

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


class DataError(Exception):
    """Data that is missing or is not what it should be; names the file and how to get it."""


@dataclass(frozen=True)
class Dataset:
    """Images as published: (N, H, W) grey or (N, H, W, 3) colour, uint8; labels (N,) int64."""

    name: str
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels


@dataclass(frozen=True)
class Splits:
    """Disjoint indices into the training set; together they are all of it. The test set is the fourth split."""

    train: Indices
    fit: Indices
    conformal: Indices

    def digests(self) -> dict[str, str]:
        """SHA-256 of each split's indices as little-endian int64."""
        return {name: indices_digest(indices) for name, indices in vars(self).items()}


@dataclass(frozen=True)
class Source:
    """How a data set is read and what its networks are fed.

    held_back: training images kept from training for each of the two calibration splits.
    """

    load: Callable[[Path], Dataset]
    labels: tuple[str, ...]
    n_train: int
    held_back: int
    input: InputSpec


DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(name: str, directory: Path | None = None) -> Dataset:
    return DATASETS[name].load(directory or Path(os.environ.get("DATA_DIR", "../shared/data")))


def splits(name: str) -> Splits:
    """Split the training set. Stable for ever: images are ordered by the SHA-256 of data set and index."""
    source = DATASETS[name]
    order = sorted(range(source.n_train), key=lambda i: hashlib.sha256(f"{name}/{i}".encode()).digest())
    held = source.held_back
    fit, conformal, train = order[:held], order[held : 2 * held], order[2 * held :]
    return Splits(*(np.sort(np.array(part, np.int64)) for part in (train, fit, conformal)))


def pixels(name: str, images: Pixels) -> Pixels:
    """Images as published → (N, H, W, 3) uint8, by the very function that serves uploads."""
    spec = DATASETS[name].input
    return np.stack([to_pixels(Image.fromarray(image), spec) for image in images])


def normalise(name: str, images: Pixels) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32, standardised per channel as the exported graph does."""
    spec = DATASETS[name].input
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (scaled - mean) / std


def indices_digest(indices: Indices) -> str:
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def _load_mnist(directory: Path) -> Dataset:
    with np.load(directory / "mnist.npz") as file:
        return Dataset(
            "mnist",
            file["x_train"],
            file["y_train"].astype(np.int64),
            file["x_test"],
            file["y_test"].astype(np.int64),
        )


def _load_cifar10(directory: Path) -> Dataset:
    train = np.concatenate([_tiles(directory / f"cifar10_train_{k}.webp") for k in range(1, 6)])
    with np.load(directory / "cifar10_labels.npz") as file:
        y_train, y_test = file["y_train"].astype(np.int64), file["y_test"].astype(np.int64)
    return Dataset("cifar10", train, y_train, _tiles(directory / "cifar10_test.webp"), y_test)


def _tiles(path: Path) -> Pixels:
    """A sprite of 100 × 100 tiles of 32 × 32, row by row → (10000, 32, 32, 3)."""
    sprite = np.asarray(Image.open(path).convert("RGB"))
    return sprite.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


DATASETS: dict[str, Source] = {
    "mnist": Source(
        _load_mnist,
        labels=DIGITS,
        n_train=60_000,
        held_back=5000,
        input=InputSpec("digit", 32, 32, mean=(0.1,) * 3, std=(0.275,) * 3),
    ),
    "cifar10": Source(
        _load_cifar10,
        labels=CIFAR10,
        n_train=50_000,
        held_back=2500,
        input=InputSpec("photo", 32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    ),
}
