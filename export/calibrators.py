"""service.calibrators for torch: what becomes part of the exported graph, in float32, in operators every runtime has.

Parameters come as `service.calibrators.initializers` names them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# What log(1 − p) sees at the least: float32 has nothing below.
TINY = 1e-37

Method = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def identity(logits: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    return torch.softmax(logits, dim=1)


def map_temperature(logits: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    return torch.softmax(logits / params["temperature"], dim=1)


def beta_pooled(logits: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    tempered = logits / params["temperature"]
    shifted = tempered - tempered.amax(1, keepdim=True)
    exponentials = shifted.exp()
    others = exponentials @ (1 - torch.eye(logits.shape[1]))
    total = exponentials.sum(1, keepdim=True).log()
    likely, unlikely = shifted - total, others.clamp(min=TINY).log() - total
    return _normalised(torch.sigmoid(params["c"] + params["a"] * likely - params["b"] * unlikely))


def isotonic_pooled(logits: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    tempered = torch.softmax(logits / params["temperature"], dim=1)
    # How far p has come in each piece, times the slope there: no search, which runtimes lack.
    reached = torch.minimum((tempered.unsqueeze(-1) - params["starts"]).clamp(min=0), params["widths"])
    return _normalised((reached * params["slopes"]).sum(-1))


def vector(logits: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    return torch.softmax(logits * params["weights"] + params["biases"], dim=1)


METHODS: dict[str, Method] = {
    "identity": identity,
    "map_temperature": map_temperature,
    "beta_pooled": beta_pooled,
    "isotonic_pooled": isotonic_pooled,
    "vector": vector,
}


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True)
