"""service.heat: places fall where the network saw them, sums are kept, and colours say what they should."""

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn

from service.heat import Grid, Heat, Values, alike_on_the_right, is_mirrored, png

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
PLACES = SIZES.flatmap(lambda size: arrays.arrays(np.float64, size, elements=st.floats(-10, 10, width=32)))
OFFSETS, STEPS = st.floats(-3, 8), st.floats(0.5, 9)
GRIDS = st.builds(Grid, st.tuples(OFFSETS, OFFSETS), st.tuples(STEPS, STEPS))


@given(PLACES, GRIDS, st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(deadline=None)
def test_what_is_spread_keeps_its_sum(places: Values, grid: Grid, size: tuple[int, int]) -> None:
    """Whatever the sizes, and wherever the places lie, be it beyond the edge."""
    heat = Heat.spread(places, grid, size)
    assert heat.values.shape == size
    assert heat.values.sum() == pytest.approx(places.sum(), abs=1e-9 * (1 + np.abs(places).sum()))


@given(PLACES, GRIDS, st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(deadline=None)
def test_what_lies_between_places_is_between_them(places: Values, grid: Grid, size: tuple[int, int]) -> None:
    """No pixel shows more than the greatest place or less than the least."""
    values = Heat.between(places, grid, size).values
    assert values.shape == size
    assert places.min() - 1e-9 <= values.min() <= values.max() <= places.max() + 1e-9


def test_a_place_shows_at_its_centre() -> None:
    """Both ways, a lone place's peak is the pixel it lies on."""
    places, grid = np.zeros((3, 4)), Grid((2.0, 3.0), (5.0, 4.0))
    places[1, 2] = 1
    for heat in (Heat.spread(places, grid, (16, 20)), Heat.between(places, grid, (16, 20))):
        assert heat.values.argmax() == 7 * 20 + 11


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_places_lie_where_the_layers_look(data: st.DataObject) -> None:
    """For random stacks of layers, the centre is that of the pixels that the middle place really depends on."""
    grid, layers = Grid(), []
    for _ in range(data.draw(st.integers(1, 4))):
        kernel, stride, dilation = (data.draw(st.tuples(st.integers(1, m), st.integers(1, m))) for m in (4, 2, 2))
        padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        grid = grid.through(kernel, stride, padding, dilation)
        layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False).double()
        nn.init.ones_(layer.weight)
        layers.append(layer)
    image = torch.zeros((1, 1, 160, 160), dtype=torch.float64, requires_grad=True)
    made = nn.Sequential(*layers)(image)
    middle = made.shape[2] // 2, made.shape[3] // 2
    (back,) = torch.autograd.grad(made[0, 0, *middle], image)
    for axis, start, step in zip((0, 1), grid.start, grid.step, strict=True):
        seen = back[0, 0].sum(1 - axis).nonzero().double()
        assert start + step * middle[axis] == pytest.approx((seen.min() + seen.max()).item() / 2)


def test_what_is_cut_off_is_cut_off_on_both_sides() -> None:
    """A map of 28 in an image of 32 begins at pixel 2; a border that is put around it, before the image."""
    assert Grid().cut((32, 32), (28, 30)) == Grid((2.0, 1.0))
    assert Grid((1.0, 1.0), (2.0, 2.0)).cut((10, 10), (12, 10)) == Grid((-1.0, 1.0), (2.0, 2.0))


def test_red_is_for_and_blue_against() -> None:
    """The largest magnitude has its full colour, half of it half, nothing is white; the picture has these colours."""
    heat = Heat(np.array([[4.0, -4.0], [0.0, 2.0]]))
    expected = [[[255, 0, 0], [0, 0, 255]], [[255, 255, 255], [255, 128, 128]]]
    assert heat.colours.tolist() == expected
    picture = Image.open(BytesIO(heat.png()))
    assert (picture.format, picture.mode, np.asarray(picture).tolist()) == ("PNG", "RGB", expected)


def test_a_map_that_says_nothing_is_white() -> None:
    """All zeros, without a warning of a division."""
    assert (Heat(np.zeros((3, 4))).colours == 255).all()


def test_an_overlay_leaves_the_picture_where_the_map_says_nothing() -> None:
    """In grey; elsewhere it is coloured."""
    pixels = np.full((1, 2, 3), (30, 60, 90), np.uint8)
    assert Heat(np.array([[0.0, 1.0]])).over(pixels).tolist() == [[[60, 60, 60], [196, 18, 18]]]


def test_a_look_at_the_mirror_image_is_told_from_one_at_the_image() -> None:
    """By where a map changes when the left half of the image does."""
    one, other = (image.transpose(2, 0, 1).astype(float) for image in alike_on_the_right((32, 32)))
    assert (one[:, :, 16:] == other[:, :, 16:]).all()
    assert not (one[:, :, :16] == other[:, :, :16]).all()
    assert not is_mirrored(one, other)
    assert is_mirrored(one[:, :, ::-1], other[:, :, ::-1])
    assert not is_mirrored(one, one)


def test_a_png_is_written_of_grey_too() -> None:
    """(H, W) as well as (H, W, 3)."""
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(Image.open(BytesIO(png(grey)))), grey)
