"""What a trained network looks at: `python -m models.explain <name> IMAGE` writes pictures of it.

map.png is the image under a heat map for one class: red speaks for it, blue against it. It is the class activation map
(Zhou et al. 2016, equation 2) of a network that has one, and then sums to the logit; otherwise it is by occlusion
(Zeiler and Fergus 2014, section 4.2). filters.png are those of the first convolution, stage-1.png and so on what the
network makes of the image, a tile for each channel (as in section 4 of the same).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models import MODELS, weights_path
from models.datasets import DATASETS
from models.filters import enlarged, filters, stages, tiles
from models.formats import DataError
from models.network import Network
from models.networks import load_network
from service import occlusion
from service.errors import Problem
from service.heat import Both, Grid, Heat, alike_on_the_right, is_mirrored, png
from service.images import InputSpec, Pixels, decode, read_header, to_pixels

MAX_PIXELS = 100_000_000
# What only chooses among the values of a map, or averages them, makes no new one.
POOLING = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Identity,
    nn.MaxPool2d,
)
WEIGHTED = (nn.Conv2d, nn.Linear)
LAYERS = (nn.AvgPool2d, nn.Conv2d, nn.MaxPool2d)

# (N, H, W, 3) uint8 → probabilities (N, classes).
Answer = Callable[[Pixels], npt.NDArray[np.floating]]


@dataclass(frozen=True)
class Explanation:
    """The heat (H, W) of a class. By its activation map it sums to the class's logit, but for `rest`.

    By occlusion it is what the class's probability loses where the image is covered; the others are then None.
    """

    method: Literal["cam", "occlusion"]
    heat: Heat
    logit: float | None = None
    rest: float | None = None


@dataclass(frozen=True)
class Map:
    """What a layer makes of an image (L, C, h, w), L looks at once, and where its places lie."""

    values: Tensor
    grid: Grid


class Watch:
    """Sees a network at work: the maps its layers make, and how many layers with weights come after the last of them.

    Each map goes on as a copy whose past is forgotten, so that only the last of a look has to do with the logits.
    """

    def __init__(self, size: Both) -> None:
        """`size` is the image's, rows and columns."""
        self.maps: list[Map] = []
        self.weighted = 0
        # By their sizes: of two maps of a size the places lie alike.
        self._grids = {size: Grid()}

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor | None:
        """As a forward hook of modules without parts."""
        if isinstance(module, LAYERS):
            self._through(module, _places(given[0]), _places(made))
        self.weighted += isinstance(module, WEIGHTED)
        if made.ndim != 4 or _places(made) == (1, 1) or isinstance(module, POOLING):
            return None
        seen = made.detach().requires_grad_()
        self.maps.append(Map(seen, self._grids.get(_places(made), Grid())))
        self.weighted = 0
        # Whatever comes next may write to it.
        return seen.clone()

    def _through(self, layer: nn.AvgPool2d | nn.Conv2d | nn.MaxPool2d, before: Both, after: Both) -> None:
        if len(self._grids) == 1:
            (whole,) = self._grids
            self._grids.setdefault(before, Grid().cut(whole, before))
        if before in self._grids:
            self._grids.setdefault(after, self._grids[before].through(*_window(layer)))


def explain(net: Network, spec: InputSpec, pixels: Pixels, index: int, answer: Answer | None = None) -> Explanation:
    """What of an image (H, W, 3) uint8 the network takes for the class of this index.

    `answer` is asked where the network has no activation map; the network itself, uncalibrated, unless told otherwise.
    """
    found = activation(net, spec, pixels, index)
    if found is not None:
        return found
    answer = answer or (lambda images: probabilities(net, spec, images))
    whole, left = answer(pixels[None])[0, index], answer(occlusion.covered(pixels, spec))[:, index]
    return Explanation("occlusion", occlusion.lost(float(whole), left.astype(np.float64), spec))


def activation(net: Network, spec: InputSpec, pixels: Pixels, index: int) -> Explanation | None:
    """By the class activation map; None where the logits are no sum over places."""
    logits, watch = watched(net, spec, pixels)
    maps = [each.values for each in watch.maps]
    back: Sequence[Tensor | None] = torch.autograd.grad(logits[0, index], maps, allow_unused=True) if maps else ()
    last = {i: part for i, part in enumerate(back) if part is not None}
    if not last or watch.weighted != 1:
        return None
    one, other = (watched(net, spec, image)[1].maps for image in alike_on_the_right((spec.height, spec.width)))
    heat = np.zeros((spec.height, spec.width))
    for i, part in last.items():
        added = (watch.maps[i].values * part).sum(1).detach().double().numpy()
        for k, places in enumerate(added):
            look = Heat.spread(places, watch.maps[i].grid, (spec.height, spec.width)).values
            mirrored = is_mirrored(_array(one[i].values[k]), _array(other[i].values[k]))
            heat += look[:, ::-1] if mirrored else look
    logit = logits[0, index].item()
    return Explanation("cam", Heat(heat), logit, logit - float(heat.sum()))


def watched(net: Network, spec: InputSpec, pixels: Pixels) -> tuple[Tensor, Watch]:
    """The logits (1, classes) of an image (H, W, 3) uint8, and what was seen on the way."""
    watch = Watch((spec.height, spec.width))
    hooks = [module.register_forward_hook(watch) for module in net.modules() if not list(module.children())]
    net.eval()
    try:
        return net(standardised(spec, pixels[None])), watch
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def probabilities(net: Network, spec: InputSpec, images: Pixels) -> npt.NDArray[np.floating]:
    """(N, H, W, 3) uint8 → (N, classes), uncalibrated."""
    net.eval()
    return _array(net(standardised(spec, images)).double().softmax(1))


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        for path in write(arguments.name, arguments.image, arguments.label, arguments.out):
            print(f"wrote {path}")
    except (DataError, OSError) as error:
        print(f"models.explain: {error}", file=sys.stderr)
        return 1
    except Problem as problem:
        print(f"models.explain: {arguments.image}: {problem.detail}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.explain", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture, as the service takes it")
    parser.add_argument("--class", dest="label", metavar="LABEL", help="the class to explain (default: the likeliest)")
    parser.add_argument("--out", type=Path, default=Path("explained"), help="the folder to write to (%(default)s)")
    return parser


def write(name: str, image: Path, label: str | None, out: Path) -> Iterator[Path]:
    """Explain a picture; yields what was written. Raises DataError, OSError or, for a picture at fault, Problem."""
    source = DATASETS[MODELS[name].dataset]
    if label is not None and label not in source.labels:
        raise DataError(f"{name} knows no class {label!r}; there are {', '.join(source.labels)}")
    pixels = to_pixels(decode(read_header(image.read_bytes(), MAX_PIXELS)), source.input)
    net = load_network(MODELS[name].build(), weights_path(name))
    told = probabilities(net, source.input, pixels[None])[0]
    index = int(told.argmax()) if label is None else source.labels.index(label)
    found = explain(net, source.input, pixels, index)
    print(f"{source.labels[index]}: probability {told[index]:.4f}, uncalibrated; {_sum_of(found)}")
    out.mkdir(parents=True, exist_ok=True)
    pictures = {"map": enlarged(found.heat.over(pixels)), "filters": filters(net)}
    maps = stages(net, standardised(source.input, pixels[None]))
    pictures |= {f"stage-{k}": tiles(each) for k, each in enumerate(maps, 1)}
    for picture, content in pictures.items():
        partial, path = out / f"{picture}.partial", out / f"{picture}.png"
        partial.write_bytes(png(content))
        yield partial.replace(path)


def _sum_of(found: Explanation) -> str:
    low, high = found.heat.values.min(), found.heat.values.max()
    if found.logit is None:
        return f"by occlusion it changes by {-high:.4f} to {-low:+.4f}"
    return f"its logit {found.logit:.4f} is the sum of the map, and {found.rest:.4f} of no place"


def standardised(spec: InputSpec, images: Pixels) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W), as the exported graph does it."""
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (torch.tensor(images).permute(0, 3, 1, 2).float() - mean) / std


def _window(layer: nn.AvgPool2d | nn.Conv2d | nn.MaxPool2d) -> tuple[Both, Both, Both, Both]:
    """Kernel, stride, padding and dilation."""
    kernel, stride = _both(layer.kernel_size), _both(layer.stride)
    dilation = (1, 1) if isinstance(layer, nn.AvgPool2d) else _both(layer.dilation)
    if isinstance(layer.padding, str):
        same = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
        return kernel, stride, same if layer.padding == "same" else (0, 0), dilation
    return kernel, stride, _both(layer.padding), dilation


def _both(value: int | tuple[int, ...]) -> Both:
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def _places(maps: Tensor) -> Both:
    return maps.shape[2], maps.shape[3]


def _array(tensor: Tensor) -> npt.NDArray[np.floating]:
    return tensor.detach().numpy()


if __name__ == "__main__":
    sys.exit(main())
