"""A wide network with short cuts for 32 × 32 colour images, after airbench96 (Jordan 2024, arXiv:2404.00498).

| stage | kernel | output (N, C, H, W) |
| --- | --- | --- |
| whiten | 2 × 2, fixed to the patches' eigenvectors, no padding | N, 24, 31, 31 |
| block 1 | 3 × 3, pool 2, 3 × 3, 3 × 3 + short cut | N, 128, 15, 15 |
| block 2 | 3 × 3, pool 2, 3 × 3, 3 × 3 + short cut | N, 384, 7, 7 |
| block 3 | 3 × 3, pool 2, 3 × 3, 3 × 3 + short cut | N, 512, 3, 3 |
| head | max pool 3, linear | N, 10 |

9,918,776 parameters and 452 million multiply-adds for each of two looks, as in models.whitened_vgg. As published it
takes 3.1 PFLOP to train and is right in 96.0 % of cases, with GELU and label smoothing. Here it has ReLU, which
runtimes compute exactly alike, and no smoothing, which calibration would have to undo.
"""

from functools import partial

from torch import Tensor, nn

from models.recipe import Recipe
from models.whitened_vgg import Block, WhitenedVGG, augment, bias_only_norm, dirac_conv, optimizers, whiten

WIDTHS = (128, 384, 512)


class ResidualBlock(nn.Module):
    """(N, C, H, W) → (N, width, H // 2, W // 2), with a short cut past the last two convolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.block = Block(channels, width)
        self.conv3 = dirac_conv(width, width)
        self.norm3 = bias_only_norm(width)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        start = self.block.first(x)
        return self.activation(self.norm3(self.conv3(self.block.second(start))) + start)


CIFAR10_LARGE = Recipe(
    source="after Jordan 2024 (airbench96)",
    dataset="cifar10",
    build=lambda: WhitenedVGG(WIDTHS, ResidualBlock),
    prepare=whiten,
    optimizers=optimizers,
    augment=partial(augment, shift=4, hole=12),
    epochs=28,
    batch_size=1000,
    bf16=True,
    half=True,
)
