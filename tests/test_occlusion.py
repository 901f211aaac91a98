"""service.occlusion: covers every part of an image, and finds the part that an answer goes by."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.images import InputSpec, Pixels
from service.occlusion import POSITIONS, covered, lost

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def spec_of(height: int, width: int) -> InputSpec:
    return InputSpec("photo", height, width, (0.5, 0.25, 0.1), (0.2, 0.2, 0.2))


@given(SIZES)
@settings(deadline=None)
def test_every_pixel_is_covered_by_some_square_and_left_by_others(size: tuple[int, int]) -> None:
    """By the mean colour, of a copy for each place; the image itself stays as it is."""
    pixels = np.full((*size, 3), 255, np.uint8)
    copies = covered(pixels, spec_of(*size))
    assert copies.shape == (min(POSITIONS, size[0]) * min(POSITIONS, size[1]), *size, 3)
    hidden = (copies != 255).all(-1)
    assert {tuple(colour) for colour in copies[hidden]} == {(128, 64, 26)}
    assert hidden.any(0).all()
    assert hidden.any((1, 2)).all()
    # A quarter of each side, but for the edges and where a side is but a few pixels long.
    if min(size) >= POSITIONS:
        assert hidden.sum((1, 2)).max() <= (size[0] / 4 + 1) * (size[1] / 4 + 1)
    assert (pixels == 255).all()


@given(st.integers(16, 64), st.integers(16, 64), st.data())
@settings(deadline=None)
def test_the_place_that_carries_the_class_is_found(height: int, width: int, data: st.DataObject) -> None:
    """Of a network that goes by one bright spot: the map peaks there, and is 0 where no square reaches it."""
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[row, column] = 255

    def probability(images: Pixels) -> npt.NDArray[np.float64]:
        return np.where(images[:, row, column, 0] == 255, 0.9, 0.1)

    spec = spec_of(height, width)
    heat = lost(0.9, probability(covered(pixels, spec)), spec).values
    assert heat.shape == (height, width)
    assert heat.max() == pytest.approx(0.8)
    assert heat[row, column] >= 0.4
    rows, columns = np.nonzero(heat > 0.4)
    assert abs(rows.mean() - row) <= height / 8
    assert abs(columns.mean() - column) <= width / 8
    far = np.hypot((np.arange(height)[:, None] - row) / height, (np.arange(width) - column) / width) > 0.5
    assert not heat[far].any()


def test_what_speaks_against_a_class_is_negative() -> None:
    """Where covering makes it likelier."""
    spec = spec_of(32, 32)
    left = np.full(64, 0.5)
    left[0] = 0.75
    heat = lost(0.5, left, spec).values
    assert heat.min() == heat[0, 0] == -0.25
    assert not heat[8:, 8:].any()
