"""What each input of a network's linear end adds to one of its outputs, found by going back from the output.

Each rule undoes one operator of ONNX, as far as this is linear where it stands: a maximum counts as the input that it
was taken from. An output is then a sum over what lies before, each value times what comes back to it, and a rest of
biases. Nothing is approximated.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.backends.nodes import Node
from service.heat import Both

Array = npt.NDArray[Any]


class Call(NamedTuple):
    """An operator as it ran; `values` are tensors by name, `which` of its inputs is the one gone back to."""

    node: Node
    values: Mapping[str, Array]
    which: int = 0

    @property
    def given(self) -> Array:
        return self.values[self.node.inputs[self.which]]

    @property
    def made(self) -> Array:
        return self.values[self.node.outputs[0]]

    @property
    def other(self) -> Array:
        """Of two inputs."""
        return self.values[self.node.inputs[1 - self.which]]

    def window(self, which: str, default: int) -> Both:
        """Of rows and columns: an attribute of a convolution or a pooling."""
        rows, columns = self.node.wholes(which, (default, default))
        return rows, columns

    @property
    def kernel(self) -> Both:
        """Of a convolution, told by its weights."""
        rows, columns = self.node.wholes("kernel_shape", ()) or self.values[self.node.inputs[1]].shape[2:]
        return rows, columns

    @property
    def padding(self) -> Both:
        """What is put before the first row and the first column."""
        automatic = self.node.attributes.get("auto_pad", "NOTSET")
        if automatic == "VALID":
            return 0, 0
        if automatic == "NOTSET":
            rows, columns, *_ = self.node.wholes("pads", (0, 0, 0, 0))
            return rows, columns
        sizes = zip(self.given.shape[2:], self.made.shape[2:], self.kernel, *self._spread, strict=True)
        lacking = [max(0, (made - 1) * by + (size - 1) * wide + 1 - given) for given, made, size, by, wide in sizes]
        # Of an odd number one side gets more.
        rows, columns = ((pixels + (automatic == "SAME_LOWER")) // 2 for pixels in lacking)
        return rows, columns

    @property
    def _spread(self) -> tuple[Both, Both]:
        return self.window("strides", 1), self.window("dilations", 1)

    def windows(self) -> Iterator[tuple[int, int, Array, Array]]:
        """Each place of what was made, and the rows and columns it was made of, without the padding."""
        strides, dilations = self._spread
        rows, columns = (
            [_within(place * by - before + np.arange(size) * wide, length) for place in range(places)]
            for places, by, before, size, wide, length in zip(
                self.made.shape[2:], strides, self.padding, self.kernel, dilations, self.given.shape[2:], strict=True
            )
        )
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                yield i, j, row, column


# From what comes back to the output to what comes back to the input; None where the operator is not linear there.
Rule = Callable[[Call, Array], Array | None]


def _within(places: Array, length: int) -> Array:
    return places[(places >= 0) & (places < length)]


def _passed(call: Call, back: Array) -> Array | None:
    return back if call.given.shape == back.shape else None


def _negated(call: Call, back: Array) -> Array | None:
    return _passed(call, -back if call.which else back)


def _multiplied(call: Call, back: Array) -> Array | None:
    return _passed(call, back * call.other)


def _divided(call: Call, back: Array) -> Array | None:
    return None if call.which else _passed(call, back / call.other)


def _reshaped(call: Call, back: Array) -> Array:
    return back.reshape(call.given.shape)


def _transposed(call: Call, back: Array) -> Array:
    order = call.node.wholes("perm", tuple(range(back.ndim))[::-1])
    return back.transpose(np.argsort(order))


def _gemm(call: Call, back: Array) -> Array | None:
    if call.which or call.node.whole("transA", 0):
        return None
    weights = call.values[call.node.inputs[1]]
    alpha = call.node.real("alpha", 1.0)
    return alpha * (back @ (weights if call.node.whole("transB", 0) else weights.T))


def _matrix(call: Call, back: Array) -> Array | None:
    return None if call.which or call.other.ndim != 2 else back @ call.other.T


def _convolved(call: Call, back: Array) -> Array | None:
    """Where all of a map comes together at one place."""
    weights = call.values[call.node.inputs[1]]
    if call.which or back.shape[2:] != (1, 1) or call.node.whole("group", 1) != 1:
        return None
    found = np.zeros(call.given.shape)
    height, width = call.given.shape[2:]
    (by_row, by_column), (top, left) = call.window("dilations", 1), call.padding
    for row in range(weights.shape[2]):
        for column in range(weights.shape[3]):
            y, x = row * by_row - top, column * by_column - left
            if 0 <= y < height and 0 <= x < width:
                found[:, :, y, x] = back[:, :, 0, 0] @ weights[:, :, row, column]
    return found


def _reduced(call: Call, back: Array) -> Array:
    """A sum."""
    axes = call.node.wholes("axes", ())
    if not axes and len(call.node.inputs) > 1:
        axes = tuple(int(axis) for axis in call.values[call.node.inputs[1]])
    shape = call.given.shape
    kept = {axis % len(shape) for axis in axes or range(len(shape))}
    return np.broadcast_to(back.reshape([1 if i in kept else n for i, n in enumerate(shape)]), shape)


def _averaged(call: Call, back: Array) -> Array:
    return _reduced(call, back) * (call.made.size / call.given.size)


def _pooled(call: Call, back: Array) -> Array:
    """A mean over all places."""
    return np.broadcast_to(back, call.given.shape) / math.prod(call.given.shape[2:])


def _greatest(call: Call, back: Array) -> Array:
    """A maximum over all places."""
    found = np.zeros(call.given.shape)
    image, channel = np.indices(call.given.shape[:2])
    row, column = np.divmod(call.given.reshape(*image.shape, -1).argmax(-1), call.given.shape[3])
    found[image, channel, row, column] = back[:, :, 0, 0]
    return found


def _max_pooled(call: Call, back: Array) -> Array | None:
    if call.node.attributes.get("auto_pad") == "SAME_LOWER" and max(call.window("dilations", 1)) > 1:
        # ONNX Runtime puts this border elsewhere than the standard says, if the kernel has holes.
        return None
    found = np.zeros(call.given.shape)
    image, channel = np.indices(back.shape[:2])
    for i, j, rows, columns in call.windows():
        seen = call.given[:, :, rows][:, :, :, columns].reshape(*back.shape[:2], -1)
        row, column = np.divmod(seen.argmax(-1), len(columns))
        np.add.at(found, (image, channel, rows[row], columns[column]), back[:, :, i, j])
    return found


def _mean_pooled(call: Call, back: Array) -> Array:
    found = np.zeros(call.given.shape)
    whole = math.prod(call.kernel)
    for i, j, rows, columns in call.windows():
        count = whole if call.node.whole("count_include_pad", 0) else len(rows) * len(columns)
        found[np.ix_(*map(np.arange, back.shape[:2]), rows, columns)] += back[:, :, i, j, None, None] / count
    return found


RULES: dict[str, Rule] = {
    "Add": _passed,
    "AveragePool": _mean_pooled,
    "Cast": _passed,
    "Conv": _convolved,
    "Div": _divided,
    "Dropout": _passed,
    "Flatten": _reshaped,
    "Gemm": _gemm,
    "GlobalAveragePool": _pooled,
    "GlobalMaxPool": _greatest,
    "Identity": _passed,
    "MatMul": _matrix,
    "MaxPool": _max_pooled,
    "Mul": _multiplied,
    "ReduceMean": _averaged,
    "ReduceSum": _reduced,
    "Reshape": _reshaped,
    "Squeeze": _reshaped,
    "Sub": _negated,
    "Transpose": _transposed,
    "Unsqueeze": _reshaped,
}
