"""The file formats data sets come in → arrays. Whatever is wrong with a file is a DataError that names it."""

import gzip
import pickle  # what may be unpickled is a closed set, see BatchUnpickler  # nosec B403
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
# A data set as its files hold it, labels uint8 too, by the names in ARRAYS.
Arrays = dict[str, Pixels]
ARRAYS = ("x_train", "y_train", "x_test", "y_test")

# What reading a damaged file may raise.
DAMAGE = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class DataError(Exception):
    """Data that is missing or is not what it should be; names the file and how to get it."""


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Turn whatever a damaged file makes its reader raise into a DataError that names the file."""
    try:
        yield path
    except DAMAGE as error:
        raise DataError(
            f"{path} is damaged or not what its name says ({error}). Replace it with an intact copy, or delete it"
        ) from error


def read_npz(path: Path, names: tuple[str, ...]) -> Arrays:
    # Opened here, for np.load does not close a file that turns out to be damaged.
    with reading(path), path.open("rb") as opened, np.load(opened) as file:
        return {name: file[name] for name in names}


def read_sprite(path: Path) -> Pixels:
    """A sprite of tiles of 32 × 32, row by row → (N, 32, 32, 3)."""
    with reading(path), Image.open(path) as image:
        sprite = np.asarray(image.convert("RGB"))
        rows, columns = sprite.shape[0] // 32, sprite.shape[1] // 32
        return sprite.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


def read_idx(path: Path) -> Pixels:
    """A gzipped IDX file of bytes: two zeros, a type, the number of axes, their big-endian lengths, the values."""
    with reading(path):
        data = gzip.decompress(path.read_bytes())
        zeros, kind, axes = struct.unpack_from(">HBB", data)
        if (zeros, kind) != (0, 8):
            raise ValueError("it does not begin as an IDX file of unsigned bytes does")
        shape = struct.unpack_from(f">{axes}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def read_cifar10_archive(path: Path) -> Arrays:
    """cifar-10-python.tar.gz, whose SHA-256 has to be checked before."""
    with reading(path):
        batches = _batches(path)
        train = [batches[f"data_batch_{k}"] for k in range(1, 6)]
        test = batches["test_batch"]
        return {
            "x_train": np.concatenate([_planes(batch) for batch in train]),
            "y_train": np.concatenate([np.array(batch[b"labels"], np.uint8) for batch in train]),
            "x_test": _planes(test),
            "y_test": np.array(test[b"labels"], np.uint8),
        }


def _batches(path: Path) -> dict[str, dict[bytes, Any]]:
    """Each batch by its file name, in one pass: going back in a gzip stream means decompressing it again."""
    batches = {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file and "_batch" in member.name:
                batches[Path(member.name).name] = BatchUnpickler(file).load()
    return batches


def _planes(batch: dict[bytes, Any]) -> Pixels:
    """Rows of 1024 red, 1024 green and 1024 blue values → (N, 32, 32, 3)."""
    rows: Pixels = batch[b"data"]
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class BatchUnpickler(pickle.Unpickler):
    """Reads what a CIFAR batch is made of, and nothing else: a dict, lists, numbers, bytes and an array of numbers.

    No name in the file leads to anything but the two functions below. They also spare the reader the warnings that
    numpy's own give when called as they were by the numpy of 2009.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return PICKLED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch") from None


def _pickled_array(_kind: object, shape: tuple[int, ...], typecode: bytes) -> npt.NDArray[Any]:
    """The empty array that the pickle fills next."""
    return np.ndarray(shape, typecode.decode())


def _pickled_dtype(kind: bytes, *_flags: int) -> np.dtype[Any]:
    """A dtype of its own, for the pickle sets its byte order next."""
    return np.dtype(kind.decode(), copy=True)


PICKLED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _pickled_array,
    ("numpy", "ndarray"): _pickled_array,  # handed to _reconstruct, never called
    ("numpy", "dtype"): _pickled_dtype,
}
