"""What training does to an image so that the network never sees it twice alike; each an Augment of a recipe.

By the image's own pixels: what is moved in from beyond an edge is what the edge shows.
"""

import torch
from torch import Tensor, nn

from models.recipe import Augment


def shifted(pixels: int) -> Augment:
    """Shift by up to so many pixels each way."""

    def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        padded = nn.functional.pad(images, (pixels,) * 4, mode="reflect")
        corners = torch.randint(0, 2 * pixels + 1, (len(images), 2), generator=generator).tolist()
        # One after another, for an index of all at once takes four times as long.
        seen = (whole[:, top:, left:][:, :height, :width] for whole, (top, left) in zip(padded, corners, strict=True))
        return torch.stack(list(seen))

    return augment


def mirrored_and_shifted(pixels: int) -> Augment:
    """Left and right exchanged in every other image, by chance; and shifted."""
    shift = shifted(pixels)

    def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return shift(images, epoch, order, generator)

    return augment
