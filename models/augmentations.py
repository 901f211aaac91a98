"""What training does to an image so that the network never sees it twice alike; each an Augment of a recipe.

By the image's own pixels: what is moved in from beyond an edge is what the edge shows.
"""

import math

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


def redrawn(
    images: Tensor,
    generator: torch.Generator,
    *,
    degrees: float,
    scale: float,
    slant: float,
    shift: float,
    bend: float = 0.0,
) -> Tensor:
    """Square drawings (B, C, S, S) placed otherwise, each by at most so much; `shift` is in pixels, `scale` a share.

    `bend` is the standard deviation, in pixels, of a smooth displacement (Simard et al. 2003).
    """
    n, _, side, _ = images.shape

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * limit

    angle, slanted = uniform(math.radians(degrees)), uniform(slant)
    wide, high = 1 + uniform(scale), 1 + uniform(scale)
    pixel = 2 / side  # in grid units: the whole image is 2
    across, down = uniform(shift * pixel), uniform(shift * pixel)
    rows = [
        torch.stack((wide * angle.cos(), slanted - angle.sin(), across), 1),
        torch.stack((angle.sin(), high * angle.cos(), down), 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    if bend:
        # Smooth, for it is known at 5 × 5 places only.
        known = torch.randn((n, 2, 5, 5), generator=generator) * (bend * pixel)
        smooth = nn.functional.interpolate(known, (side, side), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    # The border is background, so repeating it adds none.
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
