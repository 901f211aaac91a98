"""A compact VGG-like network for 32 × 32 colour images, after airbench94 (Jordan 2024, arXiv:2404.00498).

| stage | kernel | output (N, C, H, W) |
| --- | --- | --- |
| whiten | 2 × 2, fixed to the patches' eigenvectors, no padding | N, 24, 31, 31 |
| block 1 | 3 × 3, pool 2, 3 × 3 | N, 64, 15, 15 |
| block 2 | 3 × 3, pool 2, 3 × 3 | N, 256, 7, 7 |
| block 3 | 3 × 3, pool 2, 3 × 3 | N, 256, 3, 3 |
| head | max pool 3, linear | N, 10 |

1,972,792 parameters and 118 million multiply-adds (237 MFLOP) an image. A trained network looks twice, at the image and
at its mirror image, and goes by the mean of what its head sees: 237 million multiply-adds, 0.6 points of accuracy.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from models.muon import Muon
from models.network import Network
from models.recipe import Recipe, Schedule, Teacher

WIDTHS = (64, 256, 256)
WHITENING_IMAGES = 5000
# Pixels by which a training image is shifted at most, and the side of the square cut out of it.
SHIFT, HOLE = 3, 8
WHITENING_BIAS_EPOCHS = 3
HEAD_SCALE = 1 / 256
# Learning rates per image: times the batch they are the rates of the mean gradient.
BIAS_RATE, HEAD_RATE = 0.053, 0.67
# Of Muon, whose steps are equally long whatever the batch.
FILTER_RATE = 0.21
DECAY_PER_IMAGE = 2e-6


class Block(nn.Module):
    """(N, C, H, W) → (N, width, H // 2, W // 2)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = dirac_conv(channels, width)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = bias_only_norm(width)
        self.conv2 = dirac_conv(width, width)
        self.norm2 = bias_only_norm(width)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def first(self, x: Tensor) -> Tensor:
        return self.activation(self.norm1(self.pool(self.conv1(x))))

    def second(self, x: Tensor) -> Tensor:
        return self.activation(self.norm2(self.conv2(x)))


class WhitenedVGG(Network):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes)."""

    def __init__(
        self, widths: Sequence[int] = WIDTHS, block: Callable[[int, int], nn.Module] = Block, classes: int = 10
    ) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad = False
        self.activation = nn.ReLU()
        channels = (self.whiten.out_channels, *widths)
        self.blocks = nn.Sequential(*map(block, channels[:-1], channels[1:]))
        self.pool = nn.MaxPool2d(3)
        self.head = nn.Linear(widths[-1], classes, bias=False)
        with torch.no_grad():
            self.whiten_bias.zero_()
            self.head.weight.div_(self.head.weight.std())

    @property
    def whiten_bias(self) -> Tensor:
        assert self.whiten.bias is not None
        return self.whiten.bias

    def features(self, x: Tensor) -> Tensor:
        if self.training:
            return self._features(x)
        # One pass over both, lest a runtime keeps the weights once for each. By index, for MNN has no negative steps.
        mirrored = x.index_select(3, torch.arange(x.shape[3] - 1, -1, -1, device=x.device))
        seen = self._features(torch.cat((x, mirrored)))
        return seen.view(2, -1, self.head.in_features).mean(0)

    def _features(self, x: Tensor) -> Tensor:
        return self.pool(self.blocks(self.activation(self.whiten(x)))).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return HEAD_SCALE * self.head(features)


@torch.no_grad()
def whiten(net: nn.Module, images: Tensor) -> None:
    """Fix the first layer to the whitening transform of normalised training images (N, 3, 32, 32)."""
    assert isinstance(net, WhitenedVGG)
    net.whiten.weight.copy_(whitening_filters(images[:WHITENING_IMAGES]))


def whitening_filters(images: Tensor, size: int = 2, eps: float = 5e-4) -> Tensor:
    """The eigenvectors of the patches' covariance, scaled to unit variance, and their negatives.

    images: (N, C, H, W). Returns (2·C·size², C, size, size).
    """
    channels = images.shape[1]
    patches = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, H', W', size, size)
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * size * size).double()
    covariance = flat.T @ flat / len(flat)
    values, vectors = torch.linalg.eigh(covariance)
    filters = (vectors / torch.sqrt(values + eps)).T.reshape(-1, channels, size, size)
    return torch.cat((filters, -filters)).float()


def dirac_conv(channels: int, width: int) -> nn.Conv2d:
    # The first `channels` filters start as the identity, so that depth costs no signal early on.
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:channels])
    return conv


def bias_only_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


def optimizers(
    net: nn.Module, schedule: Schedule, *, filter_rate: float = FILTER_RATE
) -> list[tuple[Optimizer, LRScheduler]]:
    """Muon for the convolutions; Nesterov SGD, each at its own rate, for biases and head; all fall linearly to 0."""
    assert isinstance(net, WhitenedVGG)
    filters = [p for p in net.blocks.parameters() if p.ndim == 4 and p.requires_grad]
    biases = [p for p in net.blocks.parameters() if p.ndim == 1 and p.requires_grad]

    def group(params: Sequence[Tensor], rate: float) -> dict[str, object]:
        return {"params": params, "lr": rate * schedule.batch_size, "weight_decay": DECAY_PER_IMAGE / rate}

    groups = [group([net.whiten_bias], BIAS_RATE), group(biases, BIAS_RATE), group([net.head.weight], HEAD_RATE)]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    muon = Muon(filters, lr=filter_rate, momentum=0.6)

    def fall(step: int) -> float:
        return max(0.0, 1 - step / schedule.total_steps)

    def whitening_bias(step: int) -> float:
        # The layer's bias settles in the first epochs and is then left alone.
        return max(0.0, 1 - step / (WHITENING_BIAS_EPOCHS * schedule.steps_per_epoch))

    return [(sgd, LambdaLR(sgd, [whitening_bias, fall, fall])), (muon, LambdaLR(muon, fall))]


def augment(
    images: Tensor, epoch: int, order: Tensor, generator: torch.Generator, *, shift: int = SHIFT, hole: int = HOLE
) -> Tensor:
    """Mirror every second epoch, shift by up to `shift` pixels, edges reflected, and cut a square out (DeVries 2017).

    images: (B, 3, 32, 32); order: (B,) their indices in the training set. An image is mirrored in one epoch
    and not in the next, its first side drawn by chance per image (Jordan 2024, section 3.6).
    """
    mirrored = (_first_side(order) + epoch) % 2 == 1
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (shift,) * 4, mode="reflect")
    shifts = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator)
    side = torch.arange(32)
    rows = shifts[:, :1] + side
    columns = shifts[:, 1:] + side
    index = torch.arange(len(images))[:, None, None]
    shifted = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # Up to half of the square may lie outside. The mean of all images is 0.
    corner = torch.randint(-hole // 2, 32 - hole // 2, (2, len(images), 1), generator=generator)
    down, across = (side >= corner) & (side < corner + hole)
    return shifted.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0)


def _first_side(order: Tensor) -> Tensor:
    # A fixed pseudo-random bit per image: the parity of a multiplicative hash.
    return (order * 2654435761 >> 16) % 2


CIFAR10 = Recipe(
    source="after Jordan 2024 (airbench94)",
    dataset="cifar10",
    build=WhitenedVGG,
    prepare=whiten,
    optimizers=optimizers,
    augment=augment,
    epochs=24,
    batch_size=1500,
    teacher=Teacher("cifar10_large"),
    bf16=True,
)
