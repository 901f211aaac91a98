"""A small network with short cuts for 32 × 32 colour images, for the front of accuracy against cost.

| stage | kernel | output (N, C, H, W) |
| --- | --- | --- |
| whiten | 2 × 2, fixed to the patches' eigenvectors, no padding | N, 24, 31, 31 |
| entry | 3 × 3, pool 2 | N, 32, 15, 15 |
| stage 1 | 3 × 3, (3 × 3, 3 × 3) + short cut | N, 64, 15, 15 |
| stage 2 | pool 2, 3 × 3, (3 × 3, 3 × 3) + short cut | N, 128, 7, 7 |
| stage 3 | pool 2, 3 × 3, (3 × 3, 3 × 3) + short cut | N, 256, 3, 3 |
| head | max pool 3, linear | N, 10 |

1,947,896 parameters and 59.0 million multiply-adds (118 MFLOP) an image. The whitening, the filters' first values and
the optimisers are those of models.whitened_vgg (Jordan 2024); short cuts as in He et al. (2016, arXiv:1512.03385).
Pools come before a stage's first convolution, where they make it four times cheaper, and there is one look at the
image only: what the mirror image adds is learnt from a teacher (models.distillation).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn

from models.whitened_vgg import CIFAR10, WhitenedVGG, bias_only_norm, dirac_conv

ENTRY, WIDTHS = 32, (64, 128, 256)


class Stage(nn.Module):
    """(N, C, H, W) → (N, width, H, W), with a short cut past the last two convolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = dirac_conv(channels, width)
        self.norm1 = bias_only_norm(width)
        self.conv2 = dirac_conv(width, width)
        self.norm2 = bias_only_norm(width)
        self.conv3 = dirac_conv(width, width)
        self.norm3 = bias_only_norm(width)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        start = self.activation(self.norm1(self.conv1(x)))
        middle = self.activation(self.norm2(self.conv2(start)))
        return self.activation(self.norm3(self.conv3(middle)) + start)


class LeanResNet(WhitenedVGG):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes), by one look."""

    def __init__(self, entry: int = ENTRY, widths: Sequence[int] = WIDTHS, classes: int = 10) -> None:
        super().__init__(widths, Stage, classes)
        first = dirac_conv(self.whiten.out_channels, entry)
        self.blocks = nn.Sequential(first, nn.MaxPool2d(2), bias_only_norm(entry), nn.ReLU(), Stage(entry, widths[0]))
        for before, width in pairwise(widths):
            self.blocks.extend((nn.MaxPool2d(2), Stage(before, width)))

    def features(self, x: Tensor) -> Tensor:
        return self._features(x)


CIFAR10_LEAN = replace(
    CIFAR10, source="after Jordan 2024, He et al. 2016", build=LeanResNet, epochs=56, batch_size=1000
)
