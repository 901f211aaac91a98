"""Pictures of a convolutional network: its first filters, and what it makes of an image stage by stage."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.network import Network
from service.images import Pixels

# Pixels along the longer side of a tile, at least; between tiles.
TILE, GAP = 24, 2
# Of a picture that is looked at alone.
ENLARGED = 256


def filters(net: Network) -> Pixels:
    """(H, W, 3): those of the first convolution, each from its own blackest to its own whitest; 0 is mid-grey."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    weights = first.weight.detach().double().numpy().transpose(0, 2, 3, 1)
    most = np.abs(weights).max((1, 2, 3), keepdims=True)
    shades = 0.5 + 0.5 * weights / np.where(most > 0, most, 1)
    if shades.shape[3] != 3:
        shades = shades.mean(3, keepdims=True).repeat(3, 3)
    return _sheet(shades)


def tiles(maps: Tensor) -> Pixels:
    """(C, h, w) → (H, W, 3): a tile for each channel, from black, the least of all, to white, the most of all."""
    values = maps.detach().double().numpy()
    low, high = values.min(), values.max()
    shades = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return _sheet(shades[..., None].repeat(3, 3))


@torch.inference_mode()
def stages(net: Network, images: Tensor) -> list[Tensor]:
    """(1, 3, H, W) → (C, h, w) for each convolution: what it is by the time the next is fed, or the last has ended.

    Of a network that looks several times, by its first look.
    """
    made: dict[nn.Module, Tensor] = {}
    begun: list[nn.Module] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            begun.append(module)
        # A convolution that comes again begins another look.
        if begun and begun.index(begun[-1]) == len(begun) - 1 and found.ndim == 4 and found[0, 0].numel() > 1:
            made[begun[-1]] = found[0].clone()

    hooks = [module.register_forward_hook(note) for module in net.modules() if not list(module.children())]
    net.eval()
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return list(made.values())


def enlarged(pixels: Pixels) -> Pixels:
    """A small picture (H, W, 3), large enough to be looked at."""
    times = max(1, ENLARGED // max(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)


def _sheet(shades: npt.NDArray[np.float64]) -> Pixels:
    """(N, h, w, 3) in [0, 1] → tiles side by side, in about as many rows as columns."""
    n, height, width, _ = shades.shape
    times = max(1, math.ceil(TILE / max(height, width)))
    large = np.rint(255 * shades).astype(np.uint8).repeat(times, 1).repeat(times, 2)
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    down, across = large.shape[1] + GAP, large.shape[2] + GAP
    sheet = np.full((rows * down + GAP, columns * across + GAP, 3), 128, np.uint8)
    for i, tile in enumerate(large):
        top, left = i // columns * down + GAP, i % columns * across + GAP
        sheet[top : top + down - GAP, left : left + across - GAP] = tile
    return sheet
