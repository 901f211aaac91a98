"""models.filters: pictures of filters and of what a network makes of an image."""

import numpy as np
import torch
from torch import nn

from models.filters import GAP, TILE, enlarged, filters, stages, tiles
from models.lenet5 import LeNet5
from models.whitened_vgg import WhitenedVGG


def test_filters_are_in_colour_each_to_its_own_measure() -> None:
    """A filter's largest weight is white or black, 0 is mid-grey, and one that is all 0 is grey."""
    net = LeNet5()
    with torch.no_grad():
        net.conv1.weight.zero_()
        net.conv1.weight[0, 0, 0, 0], net.conv1.weight[0, 1, 4, 4] = 2.0, -1.0
    sheet = filters(net)
    times = -(-TILE // 5)
    tile = sheet[GAP : GAP + 5 * times, GAP : GAP + 5 * times]
    assert tile[0, 0].tolist() == [255, 128, 128]
    assert tile[-1, -1].tolist() == [128, 64, 128]
    assert (sheet[GAP + 5 * times + GAP :] == 128).all()
    # Six filters, three in a row.
    assert sheet.shape == (2 * (5 * times + GAP) + GAP, 3 * (5 * times + GAP) + GAP, 3)


def test_filters_of_a_grey_image_are_grey() -> None:
    """Of one channel."""
    net = LeNet5()
    net.conv1 = nn.Conv2d(1, 6, 5)
    sheet = filters(net)
    assert (sheet == sheet[:, :, :1]).all()
    assert {0, 255} & set(sheet.ravel().tolist())


def test_each_channel_has_a_tile_of_the_same_shades() -> None:
    """Black is the least of all channels, white the most of all; a map that says nothing is black."""
    maps = torch.zeros(3, 12, 12)
    maps[0, 0, 0], maps[2, 11, 11] = -1.0, 3.0
    sheet = tiles(maps)
    assert sheet.shape == (2 * (TILE + GAP) + GAP, 2 * (TILE + GAP) + GAP, 3)
    assert sheet[GAP, GAP].tolist() == [0, 0, 0]
    assert sheet[-GAP - 1, GAP + TILE - 1].tolist() == [255, 255, 255]
    assert (sheet[GAP : GAP + TILE, GAP + TILE + GAP : -GAP] == 64).all()
    assert (tiles(torch.zeros(1, 30, 30))[GAP:-GAP, GAP:-GAP] == 0).all()


def test_there_is_a_stage_for_each_convolution() -> None:
    """As it was before the next: with its pooling and ReLU; of two looks the first."""
    image = torch.randn(1, 3, 32, 32)
    net = LeNet5().eval()
    found = stages(net, image)
    assert [tuple(each.shape) for each in found] == [(6, 14, 14), (16, 5, 5)]
    assert torch.equal(found[0], net.pool(torch.relu(net.conv1(image)))[0])
    both = WhitenedVGG().eval()
    shapes = [(24, 31, 31), (64, 15, 15), (64, 15, 15), (256, 7, 7), (256, 7, 7), (256, 3, 3), (256, 3, 3)]
    found = stages(both, image)
    assert [tuple(each.shape) for each in found] == shapes
    assert torch.allclose(found[0], torch.relu(both.whiten(image))[0], atol=1e-5)
    assert not any(module._forward_hooks for module in both.modules())


def test_small_pictures_are_enlarged() -> None:
    """By a whole number, so that each pixel stays one; large ones are left."""
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(enlarged(small)[::128, ::128], small)
    assert enlarged(small).shape == (256, 256, 3)
    assert enlarged(np.zeros((300, 20, 3), np.uint8)).shape == (300, 20, 3)
