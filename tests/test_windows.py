"""models.windows: the formulas say what torch does, of random layers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from models.windows import Field, Pair, Window


def windows(kernel: int, stride: int, padding: int, dilation: int) -> st.SearchStrategy[Window]:
    """Up to these, of rows and of columns each its own."""
    sides = (st.integers(1, kernel), st.integers(1, stride), st.integers(0, padding), st.integers(1, dilation))
    return st.builds(Window, *(st.tuples(side, side) for side in sides))


def fits(window: Window, size: Pair) -> bool:
    """Whether torch takes an image of this size: the kernel must lie on it once."""
    return min(window.output(size)) > 0


def poolable(window: Window) -> Window:
    """The nearest that may pool: torch pads by half a kernel at most."""
    rows, columns = window.padding
    return Window(
        window.kernel,
        window.stride,
        (min(rows, window.kernel[0] // 2), min(columns, window.kernel[1] // 2)),
        window.dilation,
    )


def convolution(window: Window) -> nn.Module:
    # In double precision torch multiplies matrices; Winograd's way would let numbers meet that have no business to.
    return nn.Conv2d(1, 1, window.kernel, window.stride, window.padding, window.dilation).double()


def max_pool(window: Window) -> nn.Module:
    return nn.MaxPool2d(window.kernel, window.stride, window.padding, window.dilation)


@given(windows(5, 4, 4, 3), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.booleans())
@settings(deadline=None)
def test_an_output_has_the_size_that_torch_gives_it(window: Window, size: Pair, pools: bool) -> None:
    """Of convolutions and of pools, whatever the kernel, stride, padding and dilation of rows and of columns."""
    window = poolable(window) if pools else window
    assume(fits(window, size))
    assert layer(pools)(window)(torch.zeros(1, 1, *size).double()).shape[2:] == window.output(size)


@pytest.mark.slow
@given(st.lists(st.tuples(windows(4, 3, 2, 2), st.booleans()), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_a_field_is_as_large_as_what_changes_a_number(stack: list[tuple[Window, bool]]) -> None:
    """Of a pixel that is no number comes none wherever it is seen; what sees no padding sees all of its field.

    On an image of a field and a jump there is such a number.
    """
    slid = [poolable(window) if pools else window for window, pools in stack]
    net = nn.Sequential(*(made(window) for made, window in zip(map(layer, (p for _, p in stack)), slid, strict=True)))
    field = Field()
    for window in slid:
        field = field.through(window)
    side = max(map(sum, zip(field.size, field.jump, strict=True)))
    assert (farthest(net, side, 2), farthest(net, side, 3)) == field.size


def layer(pools: bool) -> Callable[[Window], nn.Module]:
    return max_pool if pools else convolution


@torch.no_grad()
def farthest(net: nn.Module, side: int, axis: int) -> int:
    """From the first to the last row (axis 2) or column (3) that one number sees: so many, of the number with most."""
    images = torch.zeros(side, 1, side, side).double()
    for place, image in enumerate(images):
        image[0].select(axis - 2, place)[:] = torch.nan
    # (pixels, numbers): whether the pixels of this row or column are seen.
    seen = net(images).isnan().flatten(1).numpy()
    first, last = seen.argmax(0), side - 1 - seen[::-1].argmax(0)
    return int((last - first)[seen.any(0)].max()) + 1


def test_ways_that_meet_see_what_the_longer_sees() -> None:
    """As a shortcut beside two convolutions does, in both directions."""
    long = Field().through(Window((3, 5))).through(Window((3, 1)))
    assert long.joined(Field()) == Field().joined(long) == long == Field((5, 5))


def test_all_places_together_see_everything() -> None:
    """Fields of 5 pixels, 2 apart, in 3 × 4 places; from then on a window sees no more."""
    field = Field((5, 5), (2, 2)).together((3, 4))
    assert field == Field((9, 11), (0, 0))
    assert field.through(Window((3, 3), (2, 2))) == field
