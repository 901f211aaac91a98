"""Other classes for a trained network of the zoo: a new last layer, first alone and then with all the others.

As fastai's fine_tune (Howard and Gugger 2020, chapter 5): what the new layer unlearns while it knows nothing is not
asked of the others.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from models import MODELS, weights_path
from models.formats import DAMAGE, DataError
from models.network import Network
from models.photo_net import augment, batch_size
from models.progress import Stepped
from models.recipe import Recipe, Schedule

# Of the epochs, in which the new layer is trained alone.
FROZEN = 0.25
# Learning rates: of the new layer by the size of the weights that it replaces, for networks scale their last layer
# each in its own way; of all others as it is.
HEAD_RATE, BODY_RATE, DECAY = 0.03, 5e-4, 0.01
WARM_UP = 0.1
LOOKS, EPOCHS = 30_000, (4, 20)


def recipe(name: str, classes: int, images: int, mirror: bool) -> Recipe:
    """To teach the network of this name so many classes by so many training images. Raises DataError."""
    source, known = MODELS[name], weights(name)
    place, _ = head_of(source.build())
    size = known[f"{place}.weight"].square().mean().sqrt().item()
    low, high = EPOCHS
    return Recipe(
        dataset=source.dataset,
        build=partial(headed, name, classes),
        prepare=partial(remember, known),
        optimizers=partial(optimizers, head_rate=HEAD_RATE * size),
        augment=partial(augment, mirror=mirror),
        epochs=max(low, min(high, LOOKS // images)),
        batch_size=batch_size(images),
        bf16=source.bf16,
    )


def weights(name: str) -> Mapping[str, Tensor]:
    """Of the trained network. Raises DataError."""
    path = weights_path(name)
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise DataError(f"there are no weights of {name} at {path} ({error}); python -m models.train {name}") from error
    return found


def headed(name: str, classes: int) -> Network:
    """The network, untrained, with a last layer for so many classes that answers 0. Raises DataError."""
    net = MODELS[name].build()
    place, old = head_of(net)
    new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    parent, _, attribute = place.rpartition(".")
    net.get_submodule(parent).register_module(attribute, new)
    return net


def head_of(net: nn.Module) -> tuple[str, nn.Linear]:
    """The name of the last layer, and the layer. Raises DataError where it is not linear."""
    named = [(name, module) for name, module in net.named_modules() if list(module.parameters(recurse=False))]
    name, last = named[-1]
    if not isinstance(last, nn.Linear):
        raise DataError(f"the last layer of {type(net).__name__} is no linear one; start from another network")
    return name, last


def remember(known: Mapping[str, Tensor], net: nn.Module, images: Tensor) -> None:
    """Give the network its weights, those of the last layer excepted. Raises DataError."""
    place, _ = head_of(net)
    kept = {name: value for name, value in known.items() if not name.startswith(f"{place}.")}
    try:
        _, unexpected = net.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise DataError(f"these are not the weights of {type(net).__name__}; train it again") from error
    if unexpected or len(kept) + len([*net.get_submodule(place).parameters()]) != len(net.state_dict()):
        raise DataError(f"these are not the weights of {type(net).__name__}; train it again")


def optimizers(net: nn.Module, schedule: Schedule, head_rate: float) -> Stepped:
    """AdamW; the last layer learns from the start, the others stand still for a time. Each rises and falls once."""
    _, head = head_of(net)
    ours = [id(parameter) for parameter in head.parameters()]
    body = [parameter for parameter in net.parameters() if parameter.requires_grad and id(parameter) not in ours]
    groups = [{"params": body, "lr": BODY_RATE}, {"params": list(head.parameters()), "lr": head_rate}]
    adamw = torch.optim.AdamW(groups, weight_decay=DECAY)
    rates: list[Callable[[int], float]] = [
        partial(_rise_and_fall, first, schedule.total_steps) for first in (frozen_steps(schedule), 0)
    ]
    return [(adamw, LambdaLR(adamw, rates))]


def frozen_steps(schedule: Schedule) -> int:
    """Before which only the last layer changes: whole epochs, one at least."""
    return max(1, round(FROZEN * schedule.epochs)) * schedule.steps_per_epoch


def _rise_and_fall(first: int, last: int, step: int) -> float:
    """0 before `first`; then a share of the way up to 1, and a cosine down to 0 at `last`."""
    if step < first:
        return 0.0
    done = (step - first + 1) / (last - first + 1)
    return done / WARM_UP if done < WARM_UP else (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
