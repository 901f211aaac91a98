"""Sets of images that a network was not trained for, by the data set that it was trained on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models import datasets
from models.datasets import Form, Labels
from models.formats import Arrays, DataError, Pixels, read_npz, read_sprite, reading

# The field of MNIST around a digit.
MNIST_BOX, MNIST_FRAME = (20, 20), 4


@dataclass(frozen=True)
class OutlierSet:
    """Images as the network's own data set has them, uint8. labels: (N,), where those are the network's classes."""

    images: Pixels
    labels: Labels | None


@dataclass(frozen=True)
class OutlierSource:
    """form: the files, and how to read arrays from them. digests: SHA-256 of each array.

    images, labels: which arrays these are; `labels` only where they mean what the network's own labels mean.
    published: who made the set. drawn: turns the images into those that the network's data set would have.
    """

    form: Form
    digests: dict[str, str]
    published: str
    images: str = "x_test"
    labels: str | None = None
    drawn: Callable[[Pixels], Pixels] = lambda images: images


def load(dataset: str, name: str, directory: Path | None = None) -> OutlierSet:
    """Read a set of OUTLIERS from the directory given, or else from DATA_DIR, or else from `datasets.SHARED`.

    Raises DataError if it is missing or damaged.
    """
    source = OUTLIERS[dataset][name]
    place = directory or datasets.data_dir() or datasets.SHARED
    missing = source.form.missing(place)
    if missing:
        raise DataError(
            f"{name} is not in {place}. Missing: {', '.join(missing)} ({source.published}). Put it there, or set "
            f"DATA_DIR to the directory that holds it"
        )
    arrays = source.form.read(place)
    for array, expected in source.digests.items():
        with reading(place / source.form.files[0]):
            if hashlib.sha256(arrays[array].tobytes()).hexdigest() != expected:
                raise ValueError(f"the SHA-256 of {array} is not {expected}")
    labels = arrays[source.labels].astype(np.int64) if source.labels else None
    return OutlierSet(source.drawn(arrays[source.images]), labels)


def _npz(file: str, *arrays: str) -> Form:
    return Form((file,), lambda directory: read_npz(directory / file, arrays))


def _read_cifar100(directory: Path) -> Arrays:
    return {"x": read_sprite(directory / "cifar100_ood.webp")}


def _framed(images: Pixels) -> Pixels:
    """USPS, thousandths of −1 (paper) to 1 (ink), (N, 16, 16) int16 → MNIST's way, (N, 28, 28) uint8."""
    grey = np.rint((images / 1000 + 1) * 127.5).astype(np.uint8)
    boxed = [np.asarray(Image.fromarray(image).resize(MNIST_BOX, Image.Resampling.BILINEAR)) for image in grey]
    return np.stack([np.pad(image, MNIST_FRAME) for image in boxed])


OUTLIERS: dict[str, dict[str, OutlierSource]] = {
    "mnist": {
        "fashion_mnist": OutlierSource(
            _npz("fashion_mnist_test.npz", "x_test"),
            {"x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"},
            "Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747",
        ),
        "emnist_letters": OutlierSource(
            _npz("emnist_letters_test.npz", "x_test"),
            {"x_test": "29150cc5b2fb612669596f0f21d0bb914db3340f59026259a77d1eadd6e2a7e2"},
            "Cohen, Afshar, Tapson, van Schaik 2017, arXiv:1702.05373",
        ),
        # Digits too, but other people's and another scanner's.
        "usps": OutlierSource(
            _npz("usps_test.npz", "x_test", "y_test"),
            {
                "x_test": "9c748d6be2e9da7d29b975c23c281f30a623fe85d17554cdeb3081ad123882f6",
                "y_test": "0b8b792b8ca1c5c704fd9d5bbd1b261623a359e6c8c65b23db428257beea7800",
            },
            "LeCun et al. 1989; zip.test.gz of Hastie, Tibshirani, Friedman, The Elements of Statistical Learning",
            labels="y_test",
            drawn=_framed,
        ),
    },
    "cifar10": {
        # A hundred of each class, from both of its splits, none of which is in CIFAR-10.
        "cifar100": OutlierSource(
            Form(("cifar100_ood.webp",), _read_cifar100),
            {"x": "3c4c69bf9efca110e7ff8ddf37e745dcf64e81a9998d8253988dfea05f8b80d4"},
            "Krizhevsky 2009",
            images="x",
        ),
    },
}
