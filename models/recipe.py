"""What a training run needs to know: the network, its data, its optimisers and its length."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from models.network import Network
from service.images import InputSpec, Pixels


@dataclass(frozen=True)
class Schedule:
    """The length of a run, in steps of `batch_size` images."""

    epochs: int
    steps_per_epoch: int
    batch_size: int

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Augment(Protocol):
    """Normalised images (B, 3, H, W) and their indices (B,) in the training set → augmented (B, 3, H, W)."""

    def __call__(self, images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor: ...


class Optimizers(Protocol):
    """The optimisers of a network, each with its learning-rate schedule, stepped together."""

    def __call__(self, net: nn.Module, schedule: Schedule) -> list[tuple[Optimizer, LRScheduler]]: ...


@dataclass(frozen=True)
class Strangers:
    """Images of no class, to be answered evenly (outlier exposure: Hendrycks et al. 2019, equation 2).

    images: for what the network is fed, (N, H, W, 3) uint8. augment: what is done to them, to the end.
    per_batch: how many go with each batch of images that have a class.
    weight: of their mean cross-entropy from the even answer, in the loss.
    """

    images: Callable[[InputSpec], Pixels]
    augment: Augment
    per_batch: int
    weight: float


@dataclass(frozen=True)
class Teacher:
    """A trained network of the zoo whose answers are learnt beside the labels (after Hinton et al. 2015).

    views: so many augmented views of each image are answered, once; each epoch shows another, in turn.
    weight: of the answers in the loss, out of 1; the labels have the rest.
    temperature: by which its logits are divided, so that it sounds less sure.
    """

    name: str
    views: int = 16
    weight: float = 0.9
    temperature: float = 2.0


@dataclass(frozen=True)
class Ancestor:
    """A trained network of the zoo that another starts from.

    inherit: makes of its weights, by their names, what the new network starts with.
    """

    name: str
    inherit: Callable[[nn.Module, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Recipe:
    """One entry of the zoo.

    prepare: sets what the data decides, from the normalised training images (N, 3, H, W), before the first step.
    bf16: train under autocast; the weights stay float32.
    half: keep the filters in 16 bits (float16), in half the space.
    source: who published the network, and when; every network of the zoo has one.
    """

    dataset: str
    build: Callable[[], Network]
    optimizers: Optimizers
    augment: Augment
    epochs: int
    batch_size: int
    prepare: Callable[[nn.Module, Tensor], None] = lambda net, images: None
    label_smoothing: float = 0.0
    strangers: Strangers | None = None
    ancestor: Ancestor | None = None
    teacher: Teacher | None = None
    bf16: bool = False
    half: bool = False
    source: str = ""
