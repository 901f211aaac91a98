"""The network of models.whitened_vgg for a quarter of its cost: each convolution as one over columns and one over rows.

| stage | kernel, (channels between columns and rows) | output (N, C, H, W) |
| --- | --- | --- |
| whiten | 2 × 2, fixed to the patches' eigenvectors, no padding | N, 24, 31, 31 |
| block 1 | 3 × 1, 1 × 3 (24), pool 2, 3 × 1, 1 × 3 (48) | N, 64, 15, 15 |
| block 2 | 3 × 1, 1 × 3 (77), pool 2, 3 × 1, 1 × 3 (192) | N, 256, 7, 7 |
| block 3 | 3 × 1, 1 × 3 (192), pool 2, 3 × 1, 1 × 3 (256) | N, 256, 3, 3 |
| head | max pool 3, linear | N, 10 |

1,086,904 parameters and 59.6 million multiply-adds (119 MFLOP) an image. It starts from the trained `cifar10`, whose
filters are approximated as well as so many channels can (Jaderberg et al. 2014, arXiv:1405.3866, scheme 2), and is
taught on. There is one look at the image only: what the mirror image adds is learnt from a teacher
(models.distillation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from models.recipe import Ancestor
from models.whitened_vgg import CIFAR10, WhitenedVGG, optimizers

RANKS = (24, 48, 77, 192, 192, 256)
# Lower than of the network that it starts from, which knew nothing at first.
FILTER_RATE = 0.05


class Separated(nn.Module):
    """(N, C, H, W) → (N, width, H, W): 3 × 1 to `rank` channels, and 1 × 3 from there."""

    def __init__(self, channels: int, rank: int, width: int) -> None:
        super().__init__()
        self.columns = nn.Conv2d(channels, rank, (3, 1), padding=(1, 0), bias=False)
        self.rows = nn.Conv2d(rank, width, (1, 3), padding=(0, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(self.columns(x))

    @torch.no_grad()
    def approximate(self, filters: Tensor) -> None:
        """Become the nearest to a convolution of these filters, (width, C, 3, 3), in the sum of squares."""
        width, channels, height, length = filters.shape
        rank = self.columns.out_channels
        matrix = filters.permute(1, 2, 0, 3).reshape(channels * height, width * length)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        scale = values[:rank].sqrt()
        self.columns.weight.copy_((left[:, :rank] * scale).T.reshape(rank, channels, height, 1))
        self.rows.weight.copy_((right[:rank] * scale[:, None]).reshape(rank, width, 1, length).transpose(0, 1))


class LeanVGG(WhitenedVGG):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes), by one look."""

    def __init__(self, ranks: Sequence[int] = RANKS, classes: int = 10) -> None:
        super().__init__(classes=classes)
        whole = [name for name, module in self.blocks.named_modules() if isinstance(module, nn.Conv2d)]
        for name, rank in zip(whole, ranks, strict=True):
            conv = self.blocks.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            self.blocks.set_submodule(name, Separated(conv.in_channels, rank, conv.out_channels))

    def features(self, x: Tensor) -> Tensor:
        return self._features(x)


def separate(net: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Make of the trained network's convolutions two each; take all else as it is."""
    whole = dict(known)
    for name, module in net.named_modules():
        if isinstance(module, Separated):
            module.approximate(whole.pop(f"{name}.weight"))
    net.load_state_dict(net.state_dict() | whole)


CIFAR10_LEAN = replace(
    CIFAR10,
    source="after Jordan 2024, Jaderberg et al. 2014",
    build=LeanVGG,
    ancestor=Ancestor("cifar10", separate),
    optimizers=partial(optimizers, filter_rate=FILTER_RATE),
    epochs=60,
    batch_size=750,
)
