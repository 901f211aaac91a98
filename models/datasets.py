"""MNIST, its threes and sevens, and CIFAR-10 in the field's canonical order, split by recorded index."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from models.downloads import DownloadError, RemoteFile, download, sha256_of
from models.formats import (
    ARRAYS,
    Arrays,
    DataError,
    Pixels,
    read_cifar10_archive,
    read_idx,
    read_npz,
    read_sprite,
    reading,
)
from service.images import InputSpec, to_pixels

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]
# A folder of data kept beside the checkout.
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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
class Form:
    """One way a directory may hold a data set: its files and how to read them. sha256: of files known to the byte."""

    files: tuple[str, ...]
    read: Callable[[Path], Arrays]
    sha256: dict[str, str] = field(default_factory=dict)

    def missing(self, directory: Path) -> list[str]:
        return [file for file in self.files if not (directory / file).is_file()]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, how it is checked and split, and what its networks are fed.

    repacked: the form with lossless images that Pillow and numpy read.
    remotes, read_remotes: the files as the authors publish them, and how to read those.
    shape: of one image.
    digests: SHA-256 of arrays, for those that are the same in both forms.
    held_back: training images kept from training for each of the two calibration splits.
    """

    repacked: Form
    remotes: tuple[RemoteFile, ...]
    read_remotes: Callable[[Path], Arrays]
    shape: tuple[int, ...]
    digests: dict[str, str]
    labels: tuple[str, ...]
    n_train: int
    n_test: int
    held_back: int
    input: InputSpec

    @property
    def canonical(self) -> Form:
        names = tuple(remote.name for remote in self.remotes)
        return Form(names, self.read_remotes, {remote.name: remote.sha256 for remote in self.remotes})


DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(name: str, directory: Path | None = None) -> Dataset:
    """Read a data set, in either form, from the directory given, or else from DATA_DIR if that is set.

    Where neither is, SHARED and then the cache directory are searched, and what is in neither is downloaded into the
    cache. Raises DataError if the data is missing and cannot be had, or is damaged.
    """
    source = DATASETS[name]
    chosen = directory or data_dir()
    for place in [chosen] if chosen else [SHARED, cache_directory()]:
        for form in (source.repacked, source.canonical):
            if not form.missing(place):
                return _read(name, form, place)
    if chosen:
        # A place someone named is never quietly replaced by another.
        raise DataError(_absent(name, chosen))
    return _read(name, source.canonical, _downloaded(name))


def cache_directory() -> Path:
    """Where downloads are kept: trueodds in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trueodds"


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
    return standardise(DATASETS[name].input, images)


def standardise(spec: InputSpec, images: Pixels) -> Tensor:
    """As `normalise`, for any input."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (scaled - mean) / std


def indices_digest(indices: Indices) -> str:
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def data_dir() -> Path | None:
    value = os.environ.get("DATA_DIR")
    return Path(value) if value else None


def _absent(name: str, directory: Path) -> str:
    source = DATASETS[name]
    repacked, canonical = (", ".join(form.missing(directory)) for form in (source.repacked, source.canonical))
    published, _, _ = source.remotes[0].urls[0].rpartition("/")
    return (
        f"{name} is not in {directory}. Missing: {canonical} (from {published}), or instead {repacked}. Put them "
        f"there, set DATA_DIR to the directory that holds them, or unset it to have the data set downloaded"
    )


def _downloaded(name: str) -> Path:
    """The cache directory, with what it lacked of the canonical files fetched. Raises DataError."""
    source, directory = DATASETS[name], cache_directory()
    missing = source.canonical.missing(directory)
    for remote in source.remotes:
        if remote.name in missing:
            try:
                download(remote, directory)
            except DownloadError as error:
                raise DataError(
                    f"{name}: {remote.name} could not be downloaded ({error}). Try again to resume, put the file at "
                    f"{directory / remote.name}, or set DATA_DIR to a directory that holds the data set"
                ) from error
    return directory


def _read(name: str, form: Form, directory: Path) -> Dataset:
    """Raises DataError if a file is damaged or the arrays are not the data set's."""
    for file, expected in form.sha256.items():
        with reading(directory / file) as path:
            if sha256_of(path) != expected:
                raise ValueError(f"its SHA-256 is not {expected}")
    arrays = form.read(directory)
    for array in ARRAYS:
        fault = _fault(DATASETS[name], array, arrays[array])
        if fault:
            raise DataError(f"{', '.join(form.files)} in {directory}: this is not {name}: {array} {fault}")
    y_train, y_test = (arrays[labels].astype(np.int64) for labels in ("y_train", "y_test"))
    return Dataset(name, arrays["x_train"], y_train, arrays["x_test"], y_test)


def _fault(source: Source, array: str, values: Pixels) -> str | None:
    kind, _, part = array.partition("_")
    n = source.n_train if part == "train" else source.n_test
    shape = (n, *source.shape) if kind == "x" else (n,)
    if values.shape != shape or values.dtype != np.uint8:
        return f"is {values.dtype} {values.shape}, not uint8 {shape}"
    expected = source.digests.get(array)
    if expected and hashlib.sha256(values.tobytes()).hexdigest() != expected:
        return f"has a SHA-256 other than {expected}"
    return None


def _read_repacked_mnist(directory: Path) -> Arrays:
    return read_npz(directory / "mnist.npz", ARRAYS)


def _read_repacked_cifar10(directory: Path) -> Arrays:
    train = np.concatenate([read_sprite(directory / f"cifar10_train_{k}.webp") for k in range(1, 6)])
    test = read_sprite(directory / "cifar10_test.webp")
    return {"x_train": train, "x_test": test, **read_npz(directory / "cifar10_labels.npz", ("y_train", "y_test"))}


def _read_idx_mnist(directory: Path) -> Arrays:
    return {array: read_idx(directory / remote.name) for array, remote in zip(ARRAYS, MNIST_FILES, strict=True)}


def _read_archived_cifar10(directory: Path) -> Arrays:
    return read_cifar10_archive(directory / CIFAR10_ARCHIVE.name)


def _only(classes: tuple[int, ...], read: Callable[[Path], Arrays]) -> Callable[[Path], Arrays]:
    """Reads the images of these classes alone, in their order; labels are places among `classes`, which increase."""

    def part(directory: Path) -> Arrays:
        arrays = read(directory)
        kept = {array: np.isin(arrays[array.replace("x_", "y_")], classes) for array in ARRAYS}
        chosen = {array: arrays[array][kept[array]] for array in ARRAYS}
        labels = {array: np.searchsorted(classes, chosen[array]).astype(np.uint8) for array in ("y_train", "y_test")}
        return chosen | labels

    return part


def _mnist_file(name: str, size: int, sha256: str) -> RemoteFile:
    servers = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
    return RemoteFile(name, size, sha256, tuple(f"{server}/{name}" for server in servers))


# In the order of ARRAYS.
MNIST_FILES = (
    _mnist_file(
        "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    _mnist_file(
        "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    _mnist_file(
        "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    _mnist_file("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
CIFAR10_ARCHIVE = RemoteFile(
    "cifar-10-python.tar.gz",
    170_498_071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
)
CIFAR10_SPRITES = tuple(f"cifar10_{part}.webp" for part in (*(f"train_{k}" for k in range(1, 6)), "test"))

MNIST = Source(
    repacked=Form(("mnist.npz",), _read_repacked_mnist),
    remotes=MNIST_FILES,
    read_remotes=_read_idx_mnist,
    shape=(28, 28),
    digests={
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    labels=DIGITS,
    n_train=60_000,
    n_test=10_000,
    held_back=5000,
    input=InputSpec("digit", 32, 32, mean=(0.1,) * 3, std=(0.275,) * 3),
)
# Of MNIST's classes those that are told apart first (Howard & Gugger 2020, chapter 4).
THREES_AND_SEVENS = (3, 7)

DATASETS: dict[str, Source] = {
    "mnist": MNIST,
    "mnist_3_7": replace(
        MNIST,
        repacked=replace(MNIST.repacked, read=_only(THREES_AND_SEVENS, MNIST.repacked.read)),
        read_remotes=_only(THREES_AND_SEVENS, MNIST.read_remotes),
        digests={
            "x_train": "4030ab93f08ecefe831db4e80e5115d3d334dfd6d3613f4854a0ef00982969f3",
            "y_train": "d4f9b8ec953312083489bc48a487b28afe7b75a7ab4d31b3e6218f8b048ab009",
            "x_test": "e166573fc6d30cccf2ee9ef8cdfa0693773c6dc57b1666f8e289a16fd1cdf2d6",
            "y_test": "87937d8ec7997f76c91c5c7b5fc0f0c9a6b56af7ee90c4a6c2f52824b3b1b057",
        },
        labels=tuple(DIGITS[digit] for digit in THREES_AND_SEVENS),
        n_train=12_396,
        n_test=2_038,
        held_back=1000,
    ),
    "cifar10": Source(
        repacked=Form((*CIFAR10_SPRITES, "cifar10_labels.npz"), _read_repacked_cifar10),
        remotes=(CIFAR10_ARCHIVE,),
        read_remotes=_read_archived_cifar10,
        shape=(32, 32, 3),
        # Of the labels alone: 92 of the 60,000 repacked images come from a JPEG copy.
        digests={
            "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        },
        labels=CIFAR10,
        n_train=50_000,
        n_test=10_000,
        held_back=2500,
        input=InputSpec("photo", 32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    ),
}
