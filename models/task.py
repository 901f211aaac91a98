"""What a network is to learn: a recipe, what it is fed, the classes, and the images of each split."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models import MODELS
from models.datasets import DATASETS, Labels, load, pixels, splits, standardise
from models.formats import Pixels
from models.recipe import Recipe
from service.images import InputSpec

Split = Literal["train", "fit", "conformal", "test"]


@dataclass(frozen=True)
class Images:
    """Normalised images (N, 3, H, W) float32 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Part:
    """A split as it was found: pictures (N, …) uint8, labels (N,) int64, and how pictures become (N, H, W, 3) uint8."""

    pictures: Pixels
    labels: Labels
    seen: Callable[[Pixels], Pixels] = lambda pictures: pictures

    def pixels(self) -> Pixels:
        return self.seen(self.pictures)

    def some(self, most: int) -> "Part":
        """So many of them at most, evenly."""
        if len(self.labels) <= most:
            return self
        chosen = np.linspace(0, len(self.labels) - 1, most).astype(int)
        return Part(self.pictures[chosen], self.labels[chosen], self.seen)


@dataclass(frozen=True)
class Task:
    """digests: SHA-256 of which images are in each split. terms: what else makes a run on them this one and no other.

    Weights are fitted on `train`, the calibration on `fit` and thresholds on `conformal`; `test` is only reported on.
    """

    name: str
    recipe: Recipe
    dataset: str
    spec: InputSpec
    labels: tuple[str, ...]
    part: Callable[[Split], Part]
    digests: dict[str, str]
    terms: tuple[str, ...] = ()

    def images(self, split: Split) -> Images:
        """As the network is fed them."""
        part = self.part(split)
        return Images(standardise(self.spec, part.pixels()), torch.from_numpy(part.labels))

    def strangers(self) -> Tensor | None:
        """Normalised images of no class, (N, 3, H, W), where the recipe has some."""
        wanted = self.recipe.strangers
        return standardise(self.spec, wanted.images(self.spec)) if wanted else None


def zoo(name: str) -> Task:
    """A network of the zoo on its data set, which is read when it is needed; that raises DataError."""
    recipe = MODELS[name]
    split, source = splits(recipe.dataset), DATASETS[recipe.dataset]
    data = cache(partial(load, recipe.dataset))

    def part(which: Split) -> Part:
        images, labels = data().test_images, data().test_labels
        if which != "test":
            indices = vars(split)[which]
            images, labels = data().train_images[indices], data().train_labels[indices]
        return Part(images, labels, lambda pictures: pixels(recipe.dataset, pictures))

    return Task(name, recipe, recipe.dataset, source.input, source.labels, part, split.digests())
