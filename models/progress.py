"""How far a training run has come, and all that it has to remember to go on as if nothing had happened."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from models.activations import Activations
from models.network import Network

Stepped = list[tuple[Optimizer, LRScheduler]]
Weights = dict[str, Tensor]


@dataclass
class Progress:
    """`epoch` passes are over and, of the next, `step` batches, whose losses add up to `loss`.

    seconds: of training, across interruptions. history: figures of each pass that is over. losses: of every batch.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@dataclass
class Run:
    """A network in training, with whatever decides its next step.

    generator: the randomness of this pass. best: the weights of the pass to be kept, where that need not be the last.
    """

    net: Network
    stepped: Stepped
    generator: torch.Generator = field(default_factory=torch.Generator)
    progress: Progress = field(default_factory=Progress)
    best: Weights | None = None
    activations: Activations | None = None

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts: what torch.save writes and a restricted torch.load reads."""
        return {
            "net": self.net.state_dict(),
            "stepped": [(optimizer.state_dict(), rate.state_dict()) for optimizer, rate in self.stepped],
            "progress": vars(self.progress),
            "best": self.best,
            "activations": self.activations.state() if self.activations else None,
            "generator": self.generator.get_state(),
            # What dropout draws from.
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Raises one of models.formats.DAMAGE for the state of another network."""
        self.net.load_state_dict(state["net"])
        for (optimizer, rate), (of_optimizer, of_rate) in zip(self.stepped, state["stepped"], strict=True):
            optimizer.load_state_dict(of_optimizer)
            rate.load_state_dict(of_rate)
        self.progress = Progress(**state["progress"])
        self.best = state["best"]
        if self.activations and state["activations"]:
            self.activations.load(state["activations"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])

    def keep_best(self) -> None:
        self.best = {name: value.detach().cpu().clone() for name, value in self.net.state_dict().items()}
