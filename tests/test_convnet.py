"""models.convnet: a network of the pattern asked for, and of nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import MODELS
from models.convnet import ConvNet, Pattern, Stage, convnet
from models.summary import leaves

KINDS = {nn.Conv2d: "CONV", nn.ReLU: "RELU", nn.MaxPool2d: "POOL", nn.Linear: "FC"}
STAGES = st.builds(Stage, st.lists(st.integers(1, 4), max_size=3).map(tuple), st.booleans())
PATTERNS = st.builds(
    Pattern,
    st.lists(STAGES, max_size=3).map(tuple),
    st.lists(st.integers(1, 5), max_size=2).map(tuple),
    st.tuples(st.integers(1, 3), st.integers(8, 17), st.integers(8, 17)),
    st.integers(2, 5),
)


@given(PATTERNS)
@settings(deadline=None)
def test_a_network_has_the_layers_of_its_pattern(pattern: Pattern) -> None:
    """In their order, of their widths; it takes its image and gives its classes."""
    net = convnet(pattern)()
    layers = [layer for _, layer in leaves(net)]
    asked: list[str] = []
    for stage in pattern.stages:
        asked += ["CONV", "RELU"] * len(stage.filters) + ["POOL"] * stage.pool
    asked += [*["FC", "RELU"] * len(pattern.hidden), "FC"]
    assert [KINDS[type(layer)] for layer in layers] == asked
    filters = [number for stage in pattern.stages for number in stage.filters]
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == filters
    widths = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    assert widths == [*pattern.hidden, pattern.classes]
    assert net(torch.zeros(2, *pattern.image)).shape == (2, pattern.classes)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (Pattern(), "INPUT → FC"),
        (Pattern((Stage((8,), pool=False),)), "INPUT → [CONV → RELU] → FC"),
        (Pattern((Stage((8,)), Stage((8,))), (32,)), "INPUT → [CONV → RELU → POOL]·2 → [FC → RELU] → FC"),
        (
            Pattern((Stage((8, 8)),) * 3, (32, 32)),
            "INPUT → [CONV → RELU → CONV → RELU → POOL]·3 → [FC → RELU]·2 → FC",
        ),
    ],
)
def test_the_patterns_of_the_notes_can_be_written(pattern: Pattern, told: str) -> None:
    """The notes' own four, by the notation that they use."""
    assert str(pattern) == told


def test_two_networks_of_a_pattern_are_two() -> None:
    """Each is drawn anew."""
    build = convnet(Pattern())
    one, other = build(), build()
    assert isinstance(one, ConvNet)
    assert isinstance(other, ConvNet)
    assert not torch.equal(one.fc.weight, other.fc.weight)


def test_pools_that_leave_nothing_are_refused() -> None:
    """Before anything is built, by the pattern's name."""
    with pytest.raises(ValueError, match=r"POOL\]·6 → FC: 6 pools leave nothing of 32 × 32 pixels"):
        convnet(Pattern((Stage((1,)),) * 6))


def test_the_smallest_of_the_notes_is_in_the_zoo() -> None:
    """12 filters of 3 × 3, a pool, and a linear layer on 16 × 16 × 12 numbers."""
    conv, _, pool, fc = (layer for _, layer in leaves(MODELS["cs231n_smallest"].build()))
    assert isinstance(conv, nn.Conv2d)
    assert (conv.out_channels, conv.kernel_size, conv.padding) == (12, (3, 3), (1, 1))
    assert isinstance(pool, nn.MaxPool2d)
    assert isinstance(fc, nn.Linear)
    assert (fc.in_features, fc.out_features) == (16 * 16 * 12, 10)
