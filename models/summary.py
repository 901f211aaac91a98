"""What the layers of a network do to an image: `python -m models.summary <name>`.

Output shapes and receptive fields are those of the formulas in `models.windows`. A multiply-accumulate (MAC) is a
weight times a number, added up: two FLOPs. Counted are those of convolutions and linear layers, of one image as it is
served.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models import MODELS
from models.network import Network
from models.windows import Field, Pair, Window

# (C, H, W), or (D,) where an image has become a vector.
Shape: TypeAlias = tuple[int, ...]
IMAGE: Shape = (3, 32, 32)
HEAD = ("layer", "looks", "kernel", "stride", "padding", "dilation", "output", "parameters", "MACs", "receptive field")


@dataclass(frozen=True)
class Line:
    """A layer at work, at so many looks of the network at one image; `macs` are those of all of them.

    window: None of a layer that slides none. parameters: 0 where they are those of an earlier line.
    """

    name: str
    window: Window | None
    output: Shape
    parameters: int
    macs: int
    field: Field
    looks: int = 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.summary", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    print(text(MODELS[parser.parse_args(argv).name].build()))
    return 0


def parameters(net: nn.Module) -> int:
    """Trained or not; each counts once."""
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: Network, shape: Shape = IMAGE) -> int:
    """Multiply-accumulates of one image (C, H, W) of this shape, as it is served. Raises TypeError as `lines` does."""
    return sum(line.macs for line in lines(net, shape))


def lines(net: Network, shape: Shape = IMAGE) -> list[Line]:
    """The layers, in the order in which they come to see an image (C, H, W) of this shape, as it is served.

    Raises TypeError for a layer that WINDOWS does not know.
    """
    found: dict[Line, int] = {}

    def note(name: str, layer: nn.Module, given: "_Seeing", made: "_Seeing") -> None:
        line = _line(name, layer, given, made)
        made.field = line.field
        found[line] = found.get(line, 0) + len(made)

    with _served(net), _watched(net, note), torch.no_grad():
        image = torch.zeros((1, *shape), device=next(net.parameters()).device).as_subclass(_Seeing)
        image.field = Field()
        net(image)
    return list(_counted(found))


def leaves(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that are not made of layers, each once, by the first of its names."""
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Sequential) and next(layer.children(), None) is None:
            yield name, layer


def text(net: Network, shape: Shape = IMAGE) -> str:
    """The layers as a table, and below it what they come to."""
    found = lines(net, shape)
    rows = [HEAD, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(_aligned, row, widths)).rstrip() for row in rows]
    total = sum(line.macs for line in found)
    return "\n".join([*table, "", f"{parameters(net):,} parameters, {total:,} multiply-accumulates an image"])


def _counted(found: dict[Line, int]) -> Iterator[Line]:
    """Each line with its looks, and parameters where they are first used only."""
    used: set[str] = set()
    for line, looks in found.items():
        of_its_own = 0 if line.name in used else line.parameters
        yield replace(line, parameters=of_its_own, macs=looks * line.macs, looks=looks)
        used.add(line.name)


def _line(name: str, layer: nn.Module, given: "_Seeing", made: "_Seeing") -> Line:
    window = _known(layer)(layer, given)
    output, field = tuple(made.shape[1:]), given.field
    if window:
        rows, columns = given.shape[2:]
        output, field = (output[0], *window.output((rows, columns))), field.through(window)
    weights = sum(parameter.numel() for parameter in layer.parameters())
    return Line(name, window, output, weights, _macs(layer, output), field)


def _macs(layer: nn.Module, output: Shape) -> int:
    """Each number of the output takes one for each weight of its filter."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return 0
    return prod(output) * layer.weight[0].numel()


class _Seeing(Tensor):
    """Numbers that know their receptive field, whatever is done with them."""

    field: Field

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        seeing = [given for given in tree_leaves((args, kwargs)) if isinstance(given, cls)]
        for tensor in tree_leaves(made):
            if isinstance(tensor, cls):
                tensor.field = reduce(Field.joined, (_field(given, tensor) for given in seeing))
        return made


def _field(given: _Seeing, made: Tensor) -> Field:
    """Of a number made of those in its place; or, where the image has become a vector, of all."""
    if made.ndim < given.ndim == 4:
        rows, columns = given.shape[2:]
        return given.field.together((rows, columns))
    return given.field


@contextmanager
def _served(net: nn.Module) -> Iterator[None]:
    """As it is served: evaluation may look more often than training does."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


@contextmanager
def _watched(net: nn.Module, note: Callable[[str, nn.Module, _Seeing, _Seeing], None]) -> Iterator[None]:
    """`note` hears of each call of each layer."""

    def hook(name: str, layer: nn.Module, given: tuple[_Seeing, ...], made: _Seeing) -> None:
        note(name, layer, given[0], made)

    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in leaves(net)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cells(line: Line) -> tuple[str, ...]:
    window = line.window
    slid = (window.kernel, window.stride, window.padding, window.dilation) if window else ((),) * 4
    counts = (f"{count:,}" if count else "" for count in (line.parameters, line.macs))
    return (line.name, str(line.looks), *map(_sides, slid), _sides(line.output), *counts, _sides(line.field.size))


def _sides(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell.replace(",", "").isdigit() else cell.ljust(width)


def _convolution(layer: nn.Conv2d, given: Tensor) -> Window:
    if isinstance(layer.padding, str):
        raise TypeError(f"a padding of {layer.padding!r} is not one number for both sides; give it in pixels")
    return Window(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation))


def _max_pool(layer: nn.MaxPool2d, given: Tensor) -> Window:
    return Window(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation))


def _average_pool(layer: nn.AvgPool2d, given: Tensor) -> Window:
    return Window(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))


def _global_pool(layer: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, given: Tensor) -> Window:
    if _pair(layer.output_size) != (1, 1):
        raise TypeError(f"windows of an adaptive pool to {layer.output_size} differ in size; pool to 1")
    return Window(_pair(given.shape[2:]))


def _pair(sides: Any) -> Pair:
    rows, columns = (sides, sides) if isinstance(sides, int) else sides
    return rows, columns


def _none(layer: nn.Module, given: Tensor) -> None:
    """Looks at each number by itself, or at a vector."""


WINDOWS: dict[type[nn.Module], Callable[[Any, Tensor], Window | None]] = {
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _global_pool,
    nn.AdaptiveMaxPool2d: _global_pool,
    nn.Linear: _none,
    nn.BatchNorm2d: _none,
    nn.Dropout: _none,
    nn.Flatten: _none,
    nn.GELU: _none,
    nn.Identity: _none,
    nn.ReLU: _none,
    nn.SiLU: _none,
}


def _known(layer: nn.Module) -> Callable[[Any, Tensor], Window | None]:
    for kind in type(layer).__mro__:
        if kind in WINDOWS:
            return WINDOWS[kind]
    raise TypeError(f"{type(layer).__name__} is no layer known here: give it a line in WINDOWS of models/summary.py")


if __name__ == "__main__":
    sys.exit(main())
