"""What a network is to learn: a recipe, what it is fed, the classes, and the images of each split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
class Task:
    """part: the pixels (N, H, W, 3) uint8 and labels (N,) of a split. digests: SHA-256 of which images are in each.

    Weights are fitted on `train`, the calibration on `fit` and thresholds on `conformal`; `test` is only reported on.
    """

    name: str
    recipe: Recipe
    dataset: str
    spec: InputSpec
    labels: tuple[str, ...]
    part: Callable[[Split], tuple[Pixels, Labels]]
    digests: dict[str, str]

    def images(self, split: Split) -> Images:
        """As the network is fed them."""
        fed, labels = self.part(split)
        return Images(standardise(self.spec, fed), torch.from_numpy(labels))

    def strangers(self) -> Tensor | None:
        """Normalised images of no class, (N, 3, H, W), where the recipe has some."""
        wanted = self.recipe.strangers
        return standardise(self.spec, wanted.images(self.spec)) if wanted else None


def zoo(name: str) -> Task:
    """A network of the zoo on its data set. Raises DataError."""
    recipe = MODELS[name]
    data, split, source = load(recipe.dataset), splits(recipe.dataset), DATASETS[recipe.dataset]

    def part(which: Split) -> tuple[Pixels, Labels]:
        if which == "test":
            return pixels(recipe.dataset, data.test_images), data.test_labels
        indices = vars(split)[which]
        return pixels(recipe.dataset, data.train_images[indices]), data.train_labels[indices]

    return Task(name, recipe, recipe.dataset, source.input, source.labels, part, split.digests())
