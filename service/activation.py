"""Class activation maps (Zhou et al. 2016, equation 2), read off the exported graph, exactly.

Where a network ends in pooling and a linear layer, a class's logit is a sum over places: of each feature where it was
seen (of a maximum: where it was largest), times the class's weight for it. That sum is the map; with the rest, which is
the bias of the layer, it is the logit. A network that looks at the mirror image as well has a map of each look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.backends.nodes import Node, answering, nodes
from service.heat import Both, Grid, Heat, alike_on_the_right, is_mirrored
from service.images import InputSpec, Pixels
from service.linear import RULES, Array, Call

PIXELS, LOGITS = "pixels", "logits"
SUMS = {"Add", "Sub"}
LAYERS = {"AveragePool", "Conv", "MaxPool"}
CUTS = {"Pad", "Slice"}
# Behind these a place lies elsewhere.
DISPLACING = {"ConvTranspose", "DepthToSpace", "Resize", "SpaceToDepth", "Upsample"}
# Of a logit: what its sum may be off by.
NOISE = 1e-3

Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Activation:
    """heat (H, W) sums to the class's logit, but for `rest`, which comes from no place."""

    heat: Heat
    logit: float
    rest: float


class NoActivationMapError(Exception):
    """Why a network has none."""


class Inside:
    """A graph that answers what lies within it: so many tensors, by name, for one image."""

    def __init__(self, content: bytes, names: set[str]) -> None:
        import onnxruntime as ort

        self._names = sorted(names - {PIXELS})
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # What one image needs is given back after it.
        options.enable_cpu_mem_arena = False
        content = answering(content, [name for name in self._names if name != LOGITS])
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: Pixels) -> Tensors:
        """(H, W, 3) uint8 → the tensors."""
        given = {PIXELS: pixels[None]}
        return given | dict(zip(self._names, self._session.run(self._names, given), strict=True))


class ActivationMaps:
    """Those of one network, by ONNX Runtime on one core, in one thread at a time."""

    def __init__(self, content: bytes, spec: InputSpec) -> None:
        """`content` is an ONNX file with all its weights. Raises NoActivationMapError, or ValueError or IndexError."""
        graph = nodes(content)
        self._size: Both = (spec.height, spec.width)
        self._seen = _depending(graph)
        self._end = _linear_end(graph, self._seen)
        self._inside = Inside(content, {LOGITS}.union(*(_tensors(node) for node in self._end)))
        one, other = alike_on_the_right(self._size)
        tensors, changed = self._inside(one), self._inside(other)
        maps = list(self._back(tensors, 0))
        # A network that is linear from the image on has no map of features.
        if PIXELS in maps or not all(_has_places(tensors[name]) for name in maps):
            raise NoActivationMapError("its logits are no sum over the places of a map")
        self.grids = {name: _grid(content, _way(graph, self._seen, name), one) for name in maps}
        self.mirrored = {name: list(map(is_mirrored, tensors[name], changed[name])) for name in maps}
        # What comes from no place is the same for every image.
        first, second = (self._activation(found, 0) for found in (tensors, changed))
        if abs(first.rest - second.rest) > NOISE * max(abs(first.logit), abs(second.logit), 1):
            raise NoActivationMapError("its logits are not the sum they seem to be")

    def of(self, pixels: Pixels, index: int) -> Activation:
        """(H, W, 3) uint8 → the map of the class of this index."""
        return self._activation(self._inside(pixels), index)

    def _activation(self, tensors: Tensors, index: int) -> Activation:
        back = self._back(tensors, index)
        heat = np.zeros(self._size)
        for name, grid in self.grids.items():
            for added, mirrored in zip((tensors[name] * back[name]).sum(1), self.mirrored[name], strict=True):
                look = Heat.spread(added, grid, self._size).values
                heat += look[:, ::-1] if mirrored else look
        logit = float(tensors[LOGITS][0, index])
        return Activation(Heat(heat), logit, logit - float(heat.sum()))

    def _back(self, tensors: Tensors, index: int) -> dict[str, Array]:
        """By the maps' names, how much the logit grows with each of their values."""
        back: dict[str, Array] = {LOGITS: np.eye(tensors[LOGITS].shape[1])[[index]]}
        for node in self._end:
            made = back.get(node.outputs[0])
            which = [i for i, name in enumerate(node.inputs) if name in self._seen]
            given = [] if made is None else [RULES[node.operator](Call(node, tensors, i), made) for i in which]
            sound = [part for part in given if part is not None]
            if not given or len(sound) < len(given):
                continue
            del back[node.outputs[0]]
            for i, part in zip(which, sound, strict=True):
                back[node.inputs[i]] = back.get(node.inputs[i], np.zeros(1)) + part
        return back


def _depending(graph: Sequence[Node]) -> set[str]:
    """The tensors that depend on the image."""
    seen = {PIXELS}
    for node in graph:
        if seen.intersection(node.inputs):
            seen.update(node.outputs)
    return seen


def _linear_end(graph: Sequence[Node], seen: set[str]) -> list[Node]:
    """From the logits back: what may be gone back through."""
    wanted, end = {LOGITS}, []
    for node in reversed(graph):
        given = [name for name in node.inputs if name in seen]
        # A product of two that depend on the image is not linear in them.
        linear = node.operator in RULES and (len(given) == 1 or node.operator in SUMS)
        if linear and wanted.intersection(node.outputs[:1]):
            end.append(node)
            wanted.update(given)
    return end


def _tensors(node: Node) -> set[str]:
    return {name for name in (*node.inputs, node.outputs[0]) if name}


def _has_places(tensor: Array) -> bool:
    return tensor.ndim == 4 and tensor.shape[2] * tensor.shape[3] > 1


def _way(graph: Sequence[Node], seen: set[str], name: str) -> list[Node]:
    """From the image to this tensor, by the first of several ways: they come to the same places."""
    way: list[Node] = []
    for node in reversed(graph):
        if name in node.outputs:
            way.append(node)
            name = next(given for given in node.inputs if given in seen)
    return way[::-1]


def _grid(content: bytes, way: Sequence[Node], image: Pixels) -> Grid:
    """Where the places at the end of this way lie. Raises NoActivationMapError."""
    displacing = DISPLACING.intersection(node.operator for node in way)
    if displacing:
        raise NoActivationMapError(f"it has places that {displacing.pop()} made")
    layers = [node for node in way if node.operator in LAYERS | CUTS]
    tensors = Inside(content, {LOGITS}.union(*(_tensors(node) for node in layers)))(image) if layers else {}
    grid = Grid()
    for call in (Call(node, tensors) for node in layers):
        if call.node.operator in LAYERS:
            grid = grid.through(call.kernel, call.window("strides", 1), call.padding, call.window("dilations", 1))
        else:
            grid = grid.cut(_places(call.given), _places(call.made))
    return grid


def _places(tensor: Array) -> Both:
    rows, columns = tensor.shape[2:]
    return rows, columns
