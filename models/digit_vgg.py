"""A small VGG-like network for digits, for those who draw them as well as for those who scanned MNIST.

| stage | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| grey | mean of the channels, the outermost two pixels cut off | N, 1, 28, 28 | |
| block 1 | 5 × 5, pool 2 | N, 24, 14, 14 | 648 |
| block 2 | 3 × 3, 3 × 3, pool 2 | N, 48, 7, 7 | 31,296 |
| block 3 | 3 × 3, 3 × 3, pool 2 | N, 96, 3, 3 | 124,800 |
| head | linear | N, 10 | 8,650 |

Each convolution is followed by batch normalisation and ReLU, as in Simonyan and Zisserman (2015) with Ioffe and Szegedy
(2015). 165,394 parameters and 12.7 million multiply-adds an image.
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


class DigitVGG(Network):
    """Normalised pixels (N, 3, 32, 32), light on dark → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.blocks = nn.Sequential(
            *_convolution(1, fine, 5),
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


def _convolution(channels: int, width: int, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a digit anew: placed and bent otherwise, now and then with another pen. (B, 3, H, W), grey → the same."""
    # Turned up to 15° and bent (Simard et al. 2003), for people do not draw as straight as they were told to.
    drawn = redrawn(images[:, :1], generator, degrees=15, scale=0.15, slant=0.25, shift=2, bend=1)
    return _inked(drawn, generator).expand(-1, 3, -1, -1)


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
    epochs=64,
    batch_size=250,
    strangers=Strangers(letters, per_batch=50, weight=0.5),
    bf16=True,
)
