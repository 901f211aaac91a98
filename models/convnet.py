"""INPUT → [[CONV → RELU]·N → POOL?]·M → [FC → RELU]·K → FC: the pattern of most networks before 2015 (Karpathy, CS231n
notes 2015, "Convolutional Neural Networks", layer patterns).

Convolutions are 3 × 3 with padding 1 and keep the image's size; pools take the largest of 2 × 2 and halve it. The
smallest network of the notes is INPUT → [CONV → RELU → POOL] → FC with 12 filters:

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| conv + ReLU | 12 @ 3 × 3, padding 1 | N, 12, 32, 32 | 336 |
| max pool | 2 × 2 | N, 12, 16, 16 | |
| fc | 3072 → 10 | N, 10 | 30,730 |

31,066 parameters and 0.36 million multiply-adds an image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import Tensor, nn

from models.augmentations import mirrored_and_shifted
from models.network import Network
from models.one_cycle import one_cycle
from models.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """[CONV → RELU]·N → POOL?, by the number of filters of each convolution."""

    filters: tuple[int, ...]
    pool: bool = True

    def __str__(self) -> str:
        return " → ".join(["CONV → RELU"] * len(self.filters) + ["POOL"] * self.pool)


@dataclass(frozen=True)
class Pattern:
    """The M stages and the widths of the K hidden layers, for images (C, H, W) of so many classes."""

    stages: tuple[Stage, ...] = ()
    hidden: tuple[int, ...] = ()
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10

    def __str__(self) -> str:
        parts = [*(f"[{stage}]" for stage in self.stages), *["[FC → RELU]"] * len(self.hidden)]
        repeated = ((part, len(list(alike))) for part, alike in groupby(parts))
        return " → ".join(["INPUT", *(f"{part}·{times}" if times > 1 else part for part, times in repeated), "FC"])


def convnet(pattern: Pattern) -> Callable[[], Network]:
    """Builds a network of this pattern, anew each time. Raises ValueError where pools leave nothing of the image."""
    pools = sum(stage.pool for stage in pattern.stages)
    if min(pattern.image[1:]) >> pools == 0:
        raise ValueError(f"{pattern}: {pools} pools leave nothing of {pattern.image[1]} × {pattern.image[2]} pixels")
    return lambda: ConvNet(pattern)


class ConvNet(Network):
    """Normalised pixels (N, C, H, W) → logits (N, classes)."""

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        channels, height, width = pattern.image
        filters = [channels, *(number for stage in pattern.stages for number in stage.filters)]
        pools = sum(stage.pool for stage in pattern.stages)
        widths = [filters[-1] * (height >> pools) * (width >> pools), *pattern.hidden]
        self.stages = nn.Sequential(*_stages(pattern))
        self.hidden = nn.Sequential(*_hidden(widths))
        self.fc = nn.Linear(widths[-1], pattern.classes)

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(self.stages(x).flatten(1))

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)


def _stages(pattern: Pattern) -> Iterator[nn.Module]:
    channels = pattern.image[0]
    for stage in pattern.stages:
        for filters in stage.filters:
            yield from (nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU())
            channels = filters
        if stage.pool:
            yield nn.MaxPool2d(2)


def _hidden(widths: list[int]) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(widths):
        yield from (nn.Linear(inputs, outputs), nn.ReLU())


SMALLEST = Recipe(
    source="Karpathy 2015 (CS231n)",
    dataset="cifar10",
    build=convnet(Pattern((Stage((12,)),))),
    optimizers=one_cycle(5e-3),
    augment=mirrored_and_shifted(2),
    epochs=10,
    batch_size=125,
)
