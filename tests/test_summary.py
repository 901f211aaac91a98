"""models.summary: layers, shapes and counts are those of what torch really runs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import MODELS, summary
from models.network import Network
from models.summary import lines, macs, parameters, text
from models.windows import Field


class Stack(Network):
    """Layers one after another, and a linear one on top."""

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.top = nn.Linear(width, 4)

    def features(self, x: Tensor) -> Tensor:
        seen: Tensor = self.layers(x)
        return seen.flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.top(features)
        return logits


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, int, int]]:
    """A convolution, grouped or not, and an image (C, H, W) that it fits on."""
    groups, kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    channels, filters = (groups * draw(st.integers(1, 3)) for _ in range(2))
    stride, padding, bias = draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.booleans())
    height, width = (draw(st.integers(dilation * (kernel - 1) + 1, 24)) for _ in range(2))
    conv = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias)
    return conv, (channels, height, width)


@pytest.mark.slow
@given(convolutions())
@settings(deadline=None)
def test_a_layer_is_counted_as_torch_runs_it(drawn: tuple[nn.Conv2d, tuple[int, int, int]]) -> None:
    """Output, parameters and multiply-accumulates of any convolution, and of the linear layer above it."""
    conv, shape = drawn
    output = conv(torch.zeros(1, *shape))[0]
    net = Stack(conv, width=output.numel())
    line, top = lines(net, shape)
    assert line.output == output.shape
    assert line.parameters == sum(weights.numel() for weights in conv.parameters())
    assert (line.macs, top.macs) == (counted(conv, shape), 4 * output.numel())
    assert (line.parameters + top.parameters, line.macs + top.macs) == (parameters(net), macs(net, shape))


def counted(net: nn.Module, shape: tuple[int, ...]) -> int:
    """By torch's own count of what it runs, of which two make one multiply-accumulate."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, *shape))
    flops: int = counter.get_total_flops()
    return flops // 2


@pytest.mark.parametrize("name", MODELS)
def test_the_counts_of_a_network_are_torchs(name: str) -> None:
    """All that is multiplied when it is served, twice where it looks twice; every parameter in one line."""
    net = MODELS[name].build()
    assert macs(net) == counted(net, summary.IMAGE)
    assert sum(line.parameters for line in lines(net)) == parameters(net) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_of_a_network_are_torchs(name: str) -> None:
    """What comes out of each layer, and of how many looks."""
    net = MODELS[name].build().eval()
    told = [(line.name, line.output) for line in lines(net) for _ in range(line.looks)]
    with outputs(net) as made, torch.no_grad():
        net(torch.zeros(1, *summary.IMAGE))
    assert sorted(told) == sorted((called, tuple(look.shape)) for called, output in made for look in output)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_fields_of_a_network_are_what_its_layers_see(name: str) -> None:
    """Rows that are no numbers are seen by as many of each layer's as its field has rows, where the image has so many.

    32 images, a row of each spoilt. A digit's frame of two pixels is nobody's business, and there must be a number
    that sees no padding.
    """
    net = MODELS[name].build().eval().double()
    told = lines(net.float())
    images = torch.zeros(32, *summary.IMAGE).double()
    for row, image in enumerate(images):
        image[:, row] = torch.nan
    with outputs(net.double()) as made, torch.no_grad():
        net(images)
    compared = 0
    for line, (called, output) in zip(told, made, strict=False):
        if called == line.name and output.ndim == 4 and line.field.size[0] + line.field.jump[0] <= 28:
            assert farthest(output[:32].isnan()) == line.field.size[0], line
            compared += 1
    assert compared >= 3


def farthest(spoilt: Tensor) -> int:
    """(rows, C, H, W) of what is spoilt when a row is: from the first to the last row that one number sees, at most."""
    seen = spoilt.flatten(1).numpy()
    first, last = seen.argmax(0), len(seen) - 1 - seen[::-1].argmax(0)
    return int((last - first)[seen.any(0)].max()) + 1


@contextmanager
def outputs(net: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """What comes out of each layer, by its name, in order."""
    made: list[tuple[str, Tensor]] = []

    def note(called: str, output: Tensor) -> None:
        made.append((called, output))

    hooks = [
        layer.register_forward_hook(lambda _, __, output, called=called: note(called, output))
        for called, layer in net.named_modules()
        if type(layer) in summary.WINDOWS
    ]
    yield made
    for hook in hooks:
        hook.remove()


def test_what_looks_twice_counts_twice() -> None:
    """The image and its mirror image: every layer but the last has two looks, and lists its parameters once."""
    *twice, last = lines(MODELS["cifar10"].build())
    assert {line.looks for line in twice} == {2}
    assert (last.name, last.looks) == ("head", 1)


class Shortcut(nn.Module):
    """A convolution with a way around it, and what both come to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, padding=2)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.activation(x + self.conv(x))
        return both


def test_a_shortcut_keeps_the_wider_field() -> None:
    """What is added up sees what its widest part sees; so does what is cut out of it, and all sees all."""
    conv, after, pool, top = lines(Stack(Shortcut(), nn.MaxPool2d(2), width=3 * 256))
    assert conv.field == after.field == Field((5, 5))
    assert pool.field == Field((6, 6), (2, 2))
    assert top.field == Field((36, 36), (0, 0))


def test_a_layer_used_again_brings_no_parameters() -> None:
    """It costs as much as before, sees further, and its parameters are listed where they come first."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = Stack(conv, conv, width=3 * 1024)
    once, again, top = lines(net)
    assert (once.name, once.looks, once.parameters, once.macs) == (again.name, 1, 84, again.macs)
    assert (again.parameters, once.field.size, again.field.size) == (0, (3, 3), (5, 5))
    assert once.parameters + top.parameters == parameters(net)


def test_a_global_pool_sees_all() -> None:
    """Its window is the image; a pool to more than one place has no one window."""
    pool, top = lines(Stack(nn.AdaptiveAvgPool2d(1), width=3))
    assert (pool.output, pool.field.size, top.field.size) == ((3, 1, 1), (32, 32), (32, 32))
    with pytest.raises(TypeError, match="pool to 1"):
        lines(Stack(nn.AdaptiveAvgPool2d(2), width=12))


def test_an_average_pool_is_a_window() -> None:
    """Of kernel, stride and padding, without parameters."""
    pool, _ = lines(Stack(nn.AvgPool2d(3, 2, 1), width=3 * 256))
    assert (pool.output, pool.parameters, pool.macs, pool.field) == ((3, 16, 16), 0, 0, Field((3, 3), (2, 2)))


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(3, 3, 2), nn.Conv2d(3, 3, 4, padding="same")])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_what_is_not_known_is_refused(layer: nn.Module) -> None:
    """Rather than counted as nothing."""
    with pytest.raises(TypeError, match="give it"):
        lines(Stack(layer, width=3 * 33 * 33))


def test_a_network_is_left_as_it_was() -> None:
    """In training where it was, with no hook left and its statistics untouched."""
    net = MODELS["simple_cnn"].build().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lines(net)
    assert net.training
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_lenet_5_is_told_as_the_notes_have_it() -> None:
    """Kernel, stride, padding, dilation, output, parameters, MACs and field of each layer, and the sums."""
    told = text(MODELS["lenet5"].build()).splitlines()
    conv2 = next(line for line in told if line.startswith("conv2"))
    assert re.split(r"\s{2,}", conv2) == [
        *("conv2", "1", "5 × 5", "1 × 1", "0 × 0", "1 × 1", "16 × 10 × 10", "2,416", "240,000", "14 × 14")
    ]
    assert [line.split()[0] for line in told[1:-2]] == [
        *("conv1", "activation", "pool", "conv2", "activation", "pool", "fc1", "activation", "fc2", "activation", "fc3")
    ]
    assert told[-1] == "62,006 parameters, 651,720 multiply-accumulates an image"


def test_the_columns_stand_below_their_names() -> None:
    """Every cell begins or ends where the head's does."""
    head, *told = text(MODELS["cifar10"].build()).splitlines()[:-2]
    assert re.split(r"\s{2,}", head) == list(summary.HEAD)
    start = head.index("receptive field")
    assert all(re.match(r"\S", line[start:]) and line[start - 2 : start] == "  " for line in told)


@pytest.mark.slow
def test_the_command_prints_the_table() -> None:
    """For a name of the zoo; for another it names those there are, with status 2."""
    command = [sys.executable, "-m", "models.summary"]
    good = subprocess.run([*command, "simple_cnn"], capture_output=True, text=True, check=True)
    assert good.stdout.rstrip() == text(MODELS["simple_cnn"].build())
    bad = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "invalid choice: 'nothing'" in bad.stderr
    assert all(name in bad.stderr for name in MODELS)
    assert "Traceback" not in bad.stderr
