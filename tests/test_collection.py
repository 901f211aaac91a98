"""models.collection: what is wrong with somebody's images is told by file name, with what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import collection
from models.collection import Finding, collect
from models.formats import DataError
from service.images import InputSpec, decode, read_header, to_pixels

SPEC = InputSpec("photo", 16, 16, mean=(0.0,) * 3, std=(1.0,) * 3)


def picture(path: Path, seed: int, side: int = 20) -> Path:
    """Noise that is always the same, and written as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Fifty cats and sixty dogs, all different."""
    for number in range(50):
        picture(tmp_path / "pets" / "cat" / f"{number}.png", number)
    for number in range(60):
        picture(tmp_path / "pets" / "dog" / "more" / f"{number}.png", 1000 + number)
    return tmp_path / "pets"


def test_a_folder_of_folders_is_read_as_the_service_reads_uploads(pets: Path) -> None:
    """Classes by name, images below however deep, each by the very function that serves; nothing to complain of."""
    found = collect(pets, SPEC)
    assert found.labels == ("cat", "dog")
    assert np.bincount(found.classes).tolist() == [50, 60]
    assert found.findings == ()
    assert len(set(found.digests)) == 110
    served = to_pixels(decode(read_header((pets / "cat" / "7.png").read_bytes(), 10**6)), SPEC)
    assert any(np.array_equal(served, pixels) for pixels in found.pixels[:50])
    assert found.pixels.shape == (110, 16, 16, 3)


def test_names_and_their_order_do_not_matter(pets: Path) -> None:
    """The same pictures under other names are the same collection."""
    before = collect(pets, SPEC)
    for number, path in enumerate(sorted((pets / "cat").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed-{number:03}.png"))
    after = collect(pets, SPEC)
    assert before.digests == after.digests
    assert np.array_equal(before.pixels, after.pixels)


@pytest.mark.parametrize("heading", ["", "path,label\n", "\ufeffPath, Label\n"])
def test_a_csv_of_path_and_label_says_the_same(heading: str, pets: Path) -> None:
    """Paths as seen from the CSV; with a heading or without; commas where they are quoted."""
    rows = [f'"{path.relative_to(pets)}","{path.relative_to(pets).parts[0]}, a pet"' for path in pets.rglob("*.png")]
    (pets / "list.csv").write_text(heading + "\n".join(rows) + "\n\n", encoding="utf-8")
    found = collect(pets / "list.csv", SPEC)
    assert found.labels == ("cat, a pet", "dog, a pet")
    assert found.digests == collect(pets.parent / "pets", SPEC).digests


def told(place: Path) -> str:
    return "\n".join(finding.told() for finding in collect(place, SPEC).findings)


def test_what_cannot_be_read_is_named_and_left_out(pets: Path) -> None:
    """Files cut off, of something else, empty; each with what is wrong with it. Hidden files are nobody's images."""
    whole = (pets / "cat" / "1.png").read_bytes()
    (pets / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (pets / "dog" / "notes.txt").write_text("good dogs")
    (pets / "dog" / "empty.jpg").write_bytes(b"")
    (pets / "dog" / ".DS_Store").write_bytes(b"\0")
    text = told(pets)
    assert "3 of 112 files cannot be read and are left out; replace or delete them:" in text
    assert f"{pets / 'cat' / '1.png'}: The PNG is truncated." in text
    assert f"{pets / 'dog' / 'notes.txt'}: This is not an image" in text
    assert f"{pets / 'dog' / 'empty.jpg'}: The upload is empty" in text
    assert ".DS_Store" not in text
    assert np.bincount(collect(pets, SPEC).classes).tolist() == [49, 60]


def test_a_picture_that_is_there_twice_counts_once(pets: Path) -> None:
    """Whatever its name and format, so that it cannot be learnt from and asked about; both files are named."""
    with Image.open(pets / "cat" / "3.png") as image:
        image.save(pets / "cat" / "again.bmp")
    text = told(pets)
    assert "more than once and counts once; delete the others" in text
    assert f"{pets / 'cat' / '3.png'} = {pets / 'cat' / 'again.bmp'}" in text
    assert len(collect(pets, SPEC).classes) == 110


def test_a_picture_with_two_labels_is_left_out(pets: Path) -> None:
    """Nobody knows which is right but whoever brought it."""
    (pets / "dog" / "cat.png").write_bytes((pets / "cat" / "3.png").read_bytes())
    text = told(pets)
    assert "several labels and is left out; keep it under the right one" in text
    assert f"{pets / 'cat' / '3.png'} (cat) = {pets / 'dog' / 'cat.png'} (dog)" in text
    assert np.bincount(collect(pets, SPEC).classes).tolist() == [49, 60]


def test_what_lies_beside_the_classes_is_named(pets: Path) -> None:
    """It may have been meant for one of them."""
    picture(pets / "stray.png", 1)
    assert f"move each into one:\n  {pets / 'stray.png'}" in told(pets)


def test_classes_that_differ_much_in_size_are_told(tmp_path: Path) -> None:
    """With both numbers, and what it means."""
    for number in range(10):
        picture(tmp_path / "rare" / f"{number}.png", number)
    for number in range(101):
        picture(tmp_path / "common" / f"{number}.png", 1000 + number)
    text = told(tmp_path)
    assert "common has 101 images and rare 10. Probabilities will take classes to be as frequent as here" in text
    assert "fewer than 50 images; add some, if you can:\n  rare: 10" in text
    (tmp_path / "common" / "0.png").unlink()
    assert "frequent" not in told(tmp_path)


def _too_few(place: Path) -> None:
    for number in range(9, 50):
        (place / "cat" / f"{number}.png").unlink()
    (place / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def _one_class(place: Path) -> None:
    for path in (place / "cat").iterdir():
        path.unlink()
    (place / "cat").rmdir()


def _empty_class(place: Path) -> None:
    (place / "parrot").mkdir()


def _splits(place: Path) -> None:
    (place / "cat").rename(place / "train")
    (place / "dog").rename(place / "Test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_too_few, r"10 images of a class are needed at least, and there are fewer of cat \(9\).*broken\.png: "),
        (_one_class, r"has 1 classes; there must be 2 or more"),
        (_empty_class, r"no files in parrot; put images of the class there or delete it"),
        (_splits, r"holds Test, train, which are splits and not classes; name a folder whose folders are the classes"),
    ],
)
def test_where_nothing_can_be_learnt_that_is_told(change: Callable[[Path], None], message: str, pets: Path) -> None:
    """With the class, its number of images, what is wrong with its files, and what to do."""
    change(pets)
    with pytest.raises(DataError, match=f"(?s){message}"):
        collect(pets, SPEC)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png\n", r"line 1: 'a\.png' is not a path and a label"),
        (b"path,label\na.png,cat\nb.png,dog,3\n", r"line 3: 'b\.png,dog,3' is not"),
        (b"a.png,\n", r"line 1: 'a\.png,' is not"),
        (b"\xff\xfe\0", r"cannot be read as CSV in UTF-8"),
        (b"", r"has 0 classes"),
        (b"a.png,cat\nb.png,dog\n", r"fewer of cat \(0\), dog \(0\).*a\.png: No such file or directory"),
    ],
)
def test_a_csv_that_is_none_is_told_by_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    """And files that it names and that are not there by their names."""
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        collect(tmp_path / "list.csv", SPEC)


def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With what it could be."""
    with pytest.raises(
        DataError, match=r"there is no .*none; --data takes a folder with a folder for each class, or a CSV"
    ):
        collect(tmp_path / "none", SPEC)


def test_of_many_places_some_are_shown() -> None:
    """All of them where that is asked for."""
    finding = Finding("Wrong:", tuple(f"{n}.png" for n in range(13)))
    assert finding.told().splitlines() == ["Wrong:", *(f"  {n}.png" for n in range(10)), "  and 3 more"]
    assert len(finding.told(shown=None).splitlines()) == 14
    assert Finding("Wrong:", ("a", "b")).told().splitlines() == ["Wrong:", "  a", "  b"]


def test_the_limit_of_pixels_is_the_services() -> None:
    """What could not be asked about is not learnt from."""
    from service.settings import Settings

    assert Settings.model_fields["max_pixels"].default == collection.MAX_PIXELS
