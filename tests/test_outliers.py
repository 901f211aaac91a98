"""Sets from elsewhere: found where data sets are, checked by digest, and drawn as the network's own images are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import datasets, outliers
from models.datasets import DATASETS, pixels
from models.formats import DataError
from models.outliers import OUTLIERS
from tests.conftest import data_dir

SETS = [(dataset, name) for dataset, known in OUTLIERS.items() for name in known]
COUNTS = {"fashion_mnist": 10_000, "emnist_letters": 20_800, "usps": 2_007, "cifar100": 10_000}
whole = pytest.mark.skipif(data_dir() is None, reason="needs the data sets in DATA_DIR")


@whole
@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "name"), SETS)
def test_a_set_has_the_form_of_the_networks_own(dataset: str, name: str) -> None:
    """As many images as published, uint8, of the shape of the data set, and fed by the same road."""
    found = outliers.load(dataset, name, data_dir())
    assert found.images.shape == (COUNTS[name], *DATASETS[dataset].shape)
    assert found.images.dtype == np.uint8
    fed = pixels(dataset, found.images[:20])
    assert fed.shape == (20, 32, 32, 3)
    assert fed.any(axis=(1, 2, 3)).all()


@whole
def test_usps_are_digits_in_mnists_frame() -> None:
    """Light on black, 20 × 20 in a frame of 4, with the counts of each digit as the set's authors give them."""
    found = outliers.load("mnist", "usps", data_dir())
    assert found.labels is not None
    assert np.bincount(found.labels).tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    inner = np.zeros((28, 28), bool)
    inner[4:24, 4:24] = True
    assert not found.images[:, ~inner].any()
    assert (found.images[:, inner].max(axis=1) > 200).mean() > 0.99
    assert found.images.mean() == pytest.approx(33, abs=10)


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    """The file, where it was looked for, who published it, and the variable to set."""
    with pytest.raises(DataError, match=r"fashion_mnist is not in .*fashion_mnist_test\.npz .*1708\.07747.*DATA_DIR"):
        outliers.load("mnist", "fashion_mnist", tmp_path)


def test_data_dir_comes_before_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder given comes first, then DATA_DIR; the folder beside the checkout where neither is."""
    monkeypatch.setattr(datasets, "SHARED", tmp_path / "shared")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"usps is not in .*/mine"):
        outliers.load("mnist", "usps")
    with pytest.raises(DataError, match=r"usps is not in .*/given"):
        outliers.load("mnist", "usps", tmp_path / "given")
    monkeypatch.delenv("DATA_DIR")
    with pytest.raises(DataError, match=r"usps is not in .*/shared"):
        outliers.load("mnist", "usps")


def _another(path: Path) -> None:
    np.savez(path, x_test=np.zeros((10_000, 28, 28), np.uint8))


def _without_images(path: Path) -> None:
    np.savez(path, y_test=np.zeros(10, np.uint8))


def _sprite(path: Path) -> None:
    Image.new("RGB", (3200, 3200)).save(path, "WEBP", lossless=True)


@pytest.mark.parametrize(
    ("dataset", "name", "write", "told"),
    [
        ("mnist", "fashion_mnist", _another, "SHA-256 of x_test"),
        ("mnist", "fashion_mnist", _without_images, "x_test"),
        ("mnist", "emnist_letters", lambda path: path.write_bytes(b"PK\3\4 and no more"), "damaged"),
        ("cifar10", "cifar100", _sprite, "SHA-256 of x "),
        ("cifar10", "cifar100", lambda path: path.write_bytes(b"RIFF"), "damaged"),
    ],
)
def test_what_is_damaged_is_refused(
    dataset: str, name: str, write: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    """Another content, lacking arrays and a file that ends early; the error names the file."""
    (file,) = OUTLIERS[dataset][name].form.files
    write(tmp_path / file)
    with pytest.raises(DataError, match=told) as error:
        outliers.load(dataset, name, tmp_path)
    assert str(tmp_path / file) in str(error.value)
