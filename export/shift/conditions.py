"""The images a model is asked about: the test set as it is, corrupted, and images from elsewhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from models import outliers
from models.corruptions import CORRUPTIONS
from models.corruptions.corruption import Corruption, Indices
from models.datasets import Labels, load, pixels
from models.formats import Pixels
from models.outliers import OUTLIERS

CLEAN = "clean"
# Images drawn at once: enough to make the most of an array, and not too many to hold.
PART = 500


@dataclass(frozen=True)
class Condition:
    """`labels` (n,), where they are known. `draw`: which of the n images (m,) → (m, H, W, 3) uint8, as fed."""

    name: str
    n: int
    labels: Labels | None
    draw: Callable[[Indices], Pixels]

    def parts(self) -> Iterator[Pixels]:
        """All images, some at a time."""
        for start in range(0, self.n, PART):
            yield self.draw(np.arange(start, min(start + PART, self.n)))


@dataclass(frozen=True)
class Conditions:
    """corruptions: by name, a condition for each severity. elsewhere: by the names of `models.outliers`."""

    of: int
    clean: Condition
    corruptions: dict[str, list[Condition]]
    elsewhere: dict[str, Condition]

    def __iter__(self) -> Iterator[Condition]:
        yield self.clean
        yield from self.elsewhere.values()
        for severities in self.corruptions.values():
            yield from severities


def conditions(dataset: str, images: int | None, seed: int, directory: Path | None = None) -> Conditions:
    """All that a model of this data set is asked, over so many images of each set, or all of them.

    Raises DataError.
    """
    data = load(dataset, directory)
    chosen = spread(len(data.test_images), images)
    tested, labels = data.test_images[chosen], data.test_labels[chosen]

    def corrupted(corruption: Corruption, severity: int, which: Indices) -> Pixels:
        return pixels(dataset, corruption.corrupted(tested[which], severity, chosen[which], seed))

    return Conditions(
        len(data.test_images),
        Condition(CLEAN, len(chosen), labels, lambda which: pixels(dataset, tested[which])),
        {
            name: [
                Condition(f"{name}-{severity}", len(chosen), labels, partial(corrupted, corruption, severity))
                for severity in corruption.severities
            ]
            for name, corruption in CORRUPTIONS[dataset].items()
        },
        {name: _elsewhere(dataset, name, images, directory) for name in OUTLIERS[dataset]},
    )


def spread(total: int, images: int | None) -> Indices:
    """So many of `total` indices, at an even stride; all, if that is not fewer."""
    count = min(total, images or total)
    return np.arange(count) * total // count


def _elsewhere(dataset: str, name: str, images: int | None, directory: Path | None) -> Condition:
    found = outliers.load(dataset, name, directory)
    chosen = spread(len(found.images), images)
    labels = None if found.labels is None else found.labels[chosen]
    return Condition(name, len(chosen), labels, lambda which: pixels(dataset, found.images[chosen[which]]))
