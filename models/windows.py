"""Layer arithmetic: what a window that slides over an image leaves of it, and what of the image it sees.

For a kernel of k, stride s, padding p and dilation d on n pixels, of rows as of columns:

    output           ⌊(n + 2p − d(k − 1) − 1) / s⌋ + 1                  (CS231n notes, "Convolutional Neural Networks")
    receptive field  r + d(k − 1) · j, where r = j = 1 of a pixel and every layer multiplies j by its s
                                                                        (Araujo, Norris & Sim 2019, equations 1 and 2)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

# Of rows and of columns.
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """What a layer slides over an image, in pixels."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def output(self, size: Pair) -> Pair:
        """How many places there are for it on an image of this size."""
        return _each(
            lambda n, k, s, p, d: (n + 2 * p - d * (k - 1) - 1) // s + 1,
            (size, self.kernel, self.stride, self.padding, self.dilation),
        )


@dataclass(frozen=True)
class Field:
    """How many pixels one number sees, and how many further on those are that its neighbour sees.

    `size` may be larger than the image: what lies beyond is padding.
    """

    size: Pair = (1, 1)
    jump: Pair = (1, 1)

    def through(self, window: Window) -> "Field":
        """The field of a number that a layer with this window makes of such numbers."""
        size = _each(lambda r, j, k, d: r + d * (k - 1) * j, (self.size, self.jump, window.kernel, window.dilation))
        return Field(size, _each(lambda j, s: j * s, (self.jump, window.stride)))

    def together(self, places: Pair) -> "Field":
        """The field of what is made of all places of an image; it has no neighbour, so its jump is 0."""
        return Field(self.through(Window(places)).size, (0, 0))

    def joined(self, other: "Field") -> "Field":
        """The field where two ways meet, both of which see around the same middle: the larger."""
        return Field(_each(max, (self.size, other.size)), _each(max, (self.jump, other.jump)))


def _each(formula: Callable[..., int], arguments: tuple[Pair, ...]) -> Pair:
    """Of rows, and of columns."""
    rows, columns = zip(*arguments, strict=True)
    return formula(*rows), formula(*columns)
