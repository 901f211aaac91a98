"""Images of somebody's own: a folder of one folder per class, or a CSV of path and label. Each is looked at once.

What is wrong with some is told by file name, and they are left out; where too few are left, that is a DataError.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.datasets import Labels
from models.formats import DataError, Pixels
from service.errors import Problem
from service.images import InputSpec, decode, read_header, to_pixels

# As the service has it unless told otherwise: what could not be asked about is not learnt from.
MAX_PIXELS = 25_000_000
# Of a class, to be split in four and told from others; below the second number its figures say little.
LEAST, FEW = 10, 50
# Of the largest class to the smallest.
IMBALANCE = 10
# File names that are listed of one finding; all of them are in the run's folder.
SHOWN = 10
# Folders that are splits, not classes.
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class Example:
    path: Path
    label: str


@dataclass(frozen=True)
class Finding:
    """Something wrong with the images, what to do about it, and where."""

    sentence: str
    places: tuple[str, ...] = ()

    def told(self, shown: int | None = SHOWN) -> str:
        lines = [self.sentence, *(f"  {place}" for place in self.places[:shown])]
        more = len(self.places) - len(lines) + 1
        return "\n".join([*lines, f"  and {more:,} more"] if more > 0 else lines)


@dataclass(frozen=True)
class Collection:
    """Every picture once: pixels (N, H, W, 3) uint8, classes (N,), and the SHA-256 of each picture's pixels.

    labels: of the classes, by number.
    """

    labels: tuple[str, ...]
    pixels: Pixels
    classes: Labels
    digests: tuple[str, ...]
    findings: tuple[Finding, ...]


def collect(place: Path, spec: InputSpec) -> Collection:
    """Read the images of a folder or CSV as the service reads uploads. Raises DataError."""
    examples, findings = _listed(place)
    read, unreadable = _read(examples, spec)
    unique, repeated = _unique(read)
    counts = Counter(dict.fromkeys({example.label for example in examples}, 0))
    counts.update(example.label for example, _, _ in unique)
    told = (*findings, *unreadable, *repeated)
    _check(place, counts, told)
    labels = tuple(sorted(counts))
    # By content, so that neither names nor their order matter.
    ordered = sorted(unique, key=lambda each: (each[0].label, each[2]))
    return Collection(
        labels,
        np.stack([pixels for _, pixels, _ in ordered]),
        np.array([labels.index(example.label) for example, _, _ in ordered], np.int64),
        tuple(digest for _, _, digest in ordered),
        (*told, *_doubts(counts)),
    )


def _listed(place: Path) -> tuple[list[Example], list[Finding]]:
    if place.is_dir():
        return _of_folder(place)
    if place.is_file():
        return _of_csv(place)
    raise DataError(
        f"there is no {place}; --data takes a folder with a folder for each class, or a CSV of path and label"
    )


def _of_folder(place: Path) -> tuple[list[Example], list[Finding]]:
    folders = [path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if folders and {folder.name.lower() for folder in folders} <= SPLIT_NAMES:
        raise DataError(
            f"{place} holds {', '.join(folder.name for folder in folders)}, which are splits and not classes; name a "
            "folder whose folders are the classes, for images are split here"
        )
    examples = [Example(path, folder.name) for folder in folders for path in _files(folder)]
    misplaced = tuple(str(path) for path in _files(place, "*"))
    findings = [Finding("These lie beside the folders of the classes and are left out; move each into one:", misplaced)]
    empty = {folder.name for folder in folders} - {example.label for example in examples}
    if empty:
        raise DataError(f"{place}: no files in {', '.join(sorted(empty))}; put images of the class there or delete it")
    return examples, findings if misplaced else []


def _files(folder: Path, pattern: str = "**/*") -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if path.is_file() and not path.name.startswith(".")]


def _of_csv(place: Path) -> tuple[list[Example], list[Finding]]:
    """Paths are relative to the CSV. A first line of `path,label` is a heading."""
    try:
        with place.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{place} cannot be read as CSV in UTF-8 ({error}); write a line of path,label per image"
        ) from error
    examples = []
    for number, row in rows:
        if [cell.strip().lower() for cell in row] == ["path", "label"]:
            continue
        if len(row) != 2 or not all(cell.strip() for cell in row):
            raise DataError(f"{place}, line {number}: {','.join(row)!r} is not a path and a label")
        examples.append(Example(place.parent / row[0].strip(), row[1].strip()))
    return examples, []


def _read(examples: list[Example], spec: InputSpec) -> tuple[list[tuple[Example, Pixels]], list[Finding]]:
    """What can be, and what is told of the others."""

    def attempt(example: Example) -> Pixels | str:
        try:
            return to_pixels(decode(read_header(example.path.read_bytes(), MAX_PIXELS)), spec)
        except Problem as problem:
            return problem.detail
        except OSError as error:
            return str(error.strerror)

    # Decoders let other threads run.
    with ThreadPoolExecutor() as pool:
        made = list(zip(examples, pool.map(attempt, examples), strict=True))
    wrong = tuple(f"{example.path}: {found}" for example, found in made if isinstance(found, str))
    sentence = f"{len(wrong):,} of {len(made):,} files cannot be read and are left out; replace or delete them:"
    read = [(example, found) for example, found in made if not isinstance(found, str)]
    return read, [Finding(sentence, wrong)] if wrong else []


def _unique(read: list[tuple[Example, Pixels]]) -> tuple[list[tuple[Example, Pixels, str]], list[Finding]]:
    """Each picture once, or it could be learnt from and asked about; none that has two labels."""
    alike: dict[str, list[tuple[Example, Pixels]]] = {}
    for example, pixels in read:
        alike.setdefault(hashlib.sha256(pixels.tobytes()).hexdigest(), []).append((example, pixels))
    unique, repeated, disputed = [], [], []
    for digest, group in alike.items():
        paths = [f"{example.path} ({example.label})" for example, _ in group]
        if len({example.label for example, _ in group}) > 1:
            disputed.append(" = ".join(paths))
            continue
        unique.append((*group[0], digest))
        if len(group) > 1:
            repeated.append(" = ".join(str(example.path) for example, _ in group))
    findings = [
        Finding("The same picture has several labels and is left out; keep it under the right one:", tuple(disputed)),
        Finding("The same picture is there more than once and counts once; delete the others:", tuple(repeated)),
    ]
    return unique, [finding for finding in findings if finding.places]


def _check(place: Path, counts: Counter[str], told: Iterable[Finding]) -> None:
    """Raises DataError where nothing can be learnt."""
    found = "".join(f"\n{finding.told()}" for finding in told)
    if len(counts) < 2:
        raise DataError(f"{place} has {len(counts)} classes; there must be 2 or more, each a folder of images{found}")
    small = {label: n for label, n in sorted(counts.items()) if n < LEAST}
    if small:
        named = ", ".join(f"{label} ({n})" for label, n in small.items())
        raise DataError(
            f"{place}: {LEAST} images of a class are needed at least, and there are fewer of {named}; add some, or "
            f"leave the class out{found}"
        )


def _doubts(counts: Counter[str]) -> list[Finding]:
    """What can be trained with, and had better not."""
    ranked = counts.most_common()
    (largest, most), (smallest, fewest) = ranked[0], ranked[-1]
    few = tuple(f"{label}: {n}" for label, n in reversed(ranked) if n < FEW)
    findings = []
    if few:
        findings.append(Finding(f"Of these classes there are fewer than {FEW} images; add some, if you can:", few))
    if most > IMBALANCE * fewest:
        findings.append(
            Finding(
                f"{largest} has {most:,} images and {smallest} {fewest:,}. Probabilities will take classes to be as "
                "frequent as here: if they are not where the model is used, collect images as they come there, or "
                f"more of {smallest}."
            )
        )
    return findings
