"""What goes on inside a network while it learns, layer by layer: the figures of fast.ai's ActivationStats.

Howard and Gugger 2020, Deep Learning for Coders with fastai and PyTorch, chapter 13.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn

# The book's: near zero is at most 0.05 in size, and the histogram has 40 bins from 0 to 10.
NEAR_ZERO, BINS, HIGHEST = 0.05, 40, 10.0
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)


@dataclass
class Layer:
    """Of one layer, a figure for each step looked at; shares in [0, 1]; histograms of BINS counts from 0 to HIGHEST."""

    mean: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    near_zero: list[float] = field(default_factory=list)
    histogram: list[list[float]] = field(default_factory=list)


class Activations:
    """Looks at a network at every so many training steps, by hooks, until `remove`; nothing that it computes changes.

    A layer is what a nonlinearity makes of the convolution or linear layer before it, by the name of that, or the
    outcome of the last linear layer; each is kept by its name, in the order of the first pass.
    """

    def __init__(self, net: nn.Module, every: int = 1) -> None:
        self.layers: dict[str, Layer] = {}
        self._every, self._step, self._looking = every, 0, False
        self._before = ""
        self._seen: set[str] = set()
        self._handles = [net.register_forward_pre_hook(self._begins), net.register_forward_hook(self._ends)]
        weighted = [name for name, module in net.named_modules() if isinstance(module, WEIGHTED)]
        for name, module in net.named_modules():
            if isinstance(module, ACTIVATIONS):
                self._handles.append(module.register_forward_hook(self._activated))
            elif isinstance(module, WEIGHTED):
                self._handles.append(module.register_forward_hook(self._weighted(name, name == weighted[-1])))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def state(self) -> dict[str, Any]:
        return {"step": self._step, "layers": {name: dict(vars(layer)) for name, layer in self.layers.items()}}

    def load(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.layers = {name: Layer(**figures) for name, figures in state["layers"].items()}

    def _begins(self, net: nn.Module, given: object) -> None:
        self._looking = net.training and self._step % self._every == 0
        self._step += int(net.training)
        self._before = ""
        self._seen = set()

    def _ends(self, net: nn.Module, given: object, made: object) -> None:
        # Whoever evaluates a network may ask its parts one by one.
        self._looking = False

    def _weighted(self, name: str, last: bool) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, made: Tensor) -> None:
            self._before = name
            if last:
                self._note(name, made)

        return hook

    def _activated(self, module: nn.Module, given: object, made: Tensor) -> None:
        self._note(f"{self._before} {type(module).__name__}".strip(), made)

    def _note(self, name: str, made: Tensor) -> None:
        if not self._looking:
            return
        # Two nonlinearities after one layer are two layers here.
        name = next(each for each in chain([name], (f"{name} {n}" for n in count(2))) if each not in self._seen)
        self._seen.add(name)
        layer, values = self.layers.setdefault(name, Layer()), made.detach().float()
        layer.mean.append(values.mean().item())
        layer.deviation.append(values.std(correction=0).item())
        layer.near_zero.append((values.abs() <= NEAR_ZERO).double().mean().item())
        layer.histogram.append(torch.histc(values, BINS, 0, HIGHEST).tolist())
