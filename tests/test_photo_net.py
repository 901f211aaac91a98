"""models.photo_net: a network for images of one's own, of any size."""

import pytest
import torch
from torch import nn

from models import photo_net
from models.photo_net import PhotoNet, augment


@pytest.mark.parametrize("side", [16, 17, 32, 96])
@torch.inference_mode()
def test_images_of_any_size_are_answered(side: int) -> None:
    """(N, 3, H, W) gives (N, classes)."""
    assert PhotoNet(7).eval()(torch.rand(2, 3, side, side + 3)).shape == (2, 7)


def test_the_network_is_what_its_docstring_says() -> None:
    """Sides 16, 8, 4, 4 and parameters, in all and of each block."""
    net, sides = PhotoNet(10), []
    for block in net.blocks:
        block.register_forward_hook(lambda module, given, made: sides.append(made.shape[1:]))
    net(torch.rand(2, 3, 32, 32))
    assert sides == [(24, 16, 16), (48, 8, 8), (96, 4, 4), (192, 4, 4)]
    text = photo_net.__doc__ or ""
    for block in net.blocks:
        assert f"| {sum(parameter.numel() for parameter in block.parameters()):,} |" in text
    assert f"{sum(parameter.numel() for parameter in net.parameters()):,} parameters" in text


def test_augmentation_shifts_and_mirrors() -> None:
    """By up to an eighth of the side; the same by the same generator; never mirrored where that is not wanted."""
    images = torch.zeros(200, 3, 32, 32)
    images[:, :, 12:20, 8:10] = 1.0  # left of the middle
    order = torch.arange(200)

    def centres(mirror: bool) -> torch.Tensor:
        made = augment(images, 0, order, torch.Generator().manual_seed(0), mirror)
        assert made.shape == images.shape
        assert torch.equal(made, augment(images, 0, order, torch.Generator().manual_seed(0), mirror))
        columns = torch.arange(32.0)
        return (made[:, 0].sum(1) * columns).sum(1) / made[:, 0].sum((1, 2))

    plain, mirrored = centres(mirror=False), centres(mirror=True)
    assert (plain.min().item(), plain.max().item()) == (4.5, 12.5)
    right = (mirrored > 16).double().mean()
    assert 0.4 < right < 0.6


@pytest.mark.parametrize(("images", "epochs", "batch"), [(16, 60, 2), (500, 60, 62), (5000, 20, 64), (60_000, 10, 64)])
def test_few_images_are_looked_at_more_often(images: int, epochs: int, batch: int) -> None:
    """In batches of which there are several an epoch."""
    made = photo_net.recipe(3, images, mirror=True)
    assert (made.epochs, made.batch_size) == (epochs, batch)
    net = made.build()
    assert isinstance(net, nn.Module)
    assert net.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 3)
