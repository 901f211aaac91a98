"""models.augmentations: images come out moved, and nothing else."""

import pytest
import torch
from torch import Tensor

from models.augmentations import mirrored_and_shifted, shifted
from models.recipe import Augment

ORDER = torch.arange(64)


def augmented(augment: Augment, images: Tensor, seed: int = 0) -> Tensor:
    return augment(images, 0, ORDER[: len(images)], torch.Generator().manual_seed(seed))


def images() -> Tensor:
    """64 of 6 × 8, in which a pixel's value tells where it is."""
    return torch.arange(64 * 3 * 6 * 8).float().view(64, 3, 6, 8)


def shift(before: Tensor, after: Tensor, most: int) -> tuple[int, int]:
    """By how many pixels (3, H, W) was moved down and to the right, by all that did not leave or enter."""
    height, width = before.shape[1:]
    for down in range(-most, most + 1):
        for across in range(-most, most + 1):
            to = after[:, max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)]
            of = before[:, max(-down, 0) : height - max(down, 0), max(-across, 0) : width - max(across, 0)]
            if torch.equal(to, of):
                return down, across
    raise AssertionError("not a shift")


@pytest.mark.parametrize("pixels", [1, 2])
def test_images_are_shifted_each_its_own_way(pixels: int) -> None:
    """By every number of pixels up to the limit, in both directions; what comes in is what the edge mirrors."""
    given = images()
    found = augmented(shifted(pixels), given)
    moves = [shift(before, after, pixels) for before, after in zip(given, found, strict=True)]
    assert found.shape == given.shape
    sides = set(range(-pixels, pixels + 1))
    assert {down for down, _ in moves} == {across for _, across in moves} == sides
    right = next(i for i, move in enumerate(moves) if move == (0, 1))
    assert torch.equal(found[right, :, :, 0], given[right, :, :, 1])


def test_half_of_the_images_are_mirrored() -> None:
    """Left and right, by chance; what is not, is shifted only."""
    given = images()
    found = augmented(mirrored_and_shifted(1), given)
    mirrored = 0
    for before, after in zip(given, found, strict=True):
        try:
            shift(before, after, 1)
        except AssertionError:
            shift(before.flip(2), after, 1)
            mirrored += 1
    assert 16 < mirrored < 48


@pytest.mark.parametrize("augment", [shifted(2), mirrored_and_shifted(2)])
def test_the_generator_decides(augment: Augment) -> None:
    """The same state gives the same images, another gives others: so a resumed run goes on as it would have."""
    assert torch.equal(augmented(augment, images()), augmented(augment, images()))
    assert not torch.equal(augmented(augment, images()), augmented(augment, images(), seed=1))
