"""A small VGG-like network for digits, for those who draw them as well as for those who scanned MNIST.

| stage | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| grey | mean of the channels, the outermost two pixels cut off | N, 1, 28, 28 | |
| block 1 | 3 × 3, pool 2 | N, 24, 14, 14 | 264 |
| block 2 | 3 × 3, 3 × 3, pool 2 | N, 48, 7, 7 | 31,296 |
| block 3 | 3 × 3, 3 × 3, pool 2 | N, 96, 3, 3 | 124,800 |
| head | linear | N, 10 | 8,650 |

Each convolution is followed by batch normalisation and ReLU, as in Simonyan and Zisserman (2015) with Ioffe and Szegedy
(2015). 165,010 parameters and 12.4 million multiply-adds an image.
"""

import torch
from torch import Tensor, nn

from models.augmentations import redrawn
from models.letters import letters
from models.network import Network
from models.one_cycle import one_cycle
from models.recipe import Recipe, Strangers

WIDTHS = (24, 48, 96)
# Where service.digits never puts ink.
BORDER = 2
# From this epoch on digits are drawn this much otherwise, by the measure of the epochs before.
CALM_FROM, CALM = 80, 0.15


class DigitVGG(Network):
    """Normalised pixels (N, 3, 32, 32), light on dark → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.blocks = nn.Sequential(
            *_convolution(1, fine),
            nn.MaxPool2d(2),
            *_convolution(fine, middle),
            *_convolution(middle, middle),
            nn.MaxPool2d(2),
            *_convolution(middle, coarse),
            *_convolution(coarse, coarse),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(9 * coarse, classes)

    def features(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)[..., BORDER:-BORDER, BORDER:-BORDER]
        return self.blocks(grey).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a digit anew: placed and bent otherwise, at first with another pen at times. (B, 3, H, W), grey → the same.

    At last nearly as it was scanned, so that the network ends among what it will see (He et al. 2019,
    arXiv:1909.09148).
    """
    if epoch < CALM_FROM:
        return wildly(images, epoch, order, generator)
    return _redrawn(images[:, :1], generator, CALM).expand(-1, 3, -1, -1)


def wildly(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    """Draw anything anew, as people draw who were not told to be neat. (B, 3, H, W), grey → the same."""
    return _inked(_redrawn(images[:, :1], generator), generator).expand(-1, 3, -1, -1)


def _redrawn(images: Tensor, generator: torch.Generator, much: float = 1) -> Tensor:
    # Turned up to 15° and bent (Simard et al. 2003), for people do not draw as straight as they were told to.
    return redrawn(
        images, generator, degrees=15 * much, scale=0.15 * much, slant=0.25 * much, shift=2 * much, bend=much
    )


def _inked(images: Tensor, generator: torch.Generator) -> Tensor:
    """One in five with bolder strokes, one in ten with thinner ones."""
    kind, much = torch.rand((2, len(images), 1, 1, 1), generator=generator)
    bold = nn.functional.max_pool2d(images, 3, 1, 1)
    thin = -nn.functional.max_pool2d(-images, 3, 1, 1)
    bolder, thinner = images + 0.7 * much * (bold - images), images + 0.4 * much * (thin - images)
    return torch.where(kind < 0.2, bolder, torch.where(kind < 0.3, thinner, images))


DIGITS = Recipe(
    source="after Simonyan & Zisserman 2015",
    dataset="mnist",
    build=DigitVGG,
    optimizers=one_cycle(6e-3, weight_decay=0.05, rising=0.2),
    augment=augment,
    epochs=90,
    batch_size=250,
    strangers=Strangers(letters, augment=wildly, per_batch=50, weight=0.5),
    bf16=True,
)
