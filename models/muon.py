"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024), for convolution filters.

torch.optim.Muon takes matrices only; here a filter bank (O, I, H, W) is treated as the matrix (O, I·H·W).
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

# The quintic of Newton-Schulz, tuned to raise small singular values quickly; it ends within [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; each filter bank is kept at root-mean-square filter norm 1."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["momentum"])

    def _update(self, parameter: Tensor, lr: float, momentum: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(gradient))
        buffer.mul_(momentum).add_(gradient)
        direction = gradient.add(buffer, alpha=momentum)
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        parameter.add_(orthogonalise(direction.flatten(1)).view_as(parameter), alpha=-lr)


def orthogonalise(matrix: Tensor, steps: int = 3, eps: float = 1e-7) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton-Schulz iteration. (R, C) → (R, C)."""
    a, b, c = COEFFICIENTS
    x = matrix.float() / (matrix.norm() + eps)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
