"""models.activations: what the layers of a network answer while it learns."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.activations import BINS, HIGHEST, Activations


class Known(nn.Module):
    """One nonlinearity for two layers, as some networks have it; twice after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 2, 1), nn.Linear(2, 2), nn.Linear(2, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x)).mean((2, 3))
        answer: Tensor = self.last(self.relu(self.relu(self.second(x))))
        return answer


@pytest.fixture
def net() -> Known:
    made = Known()
    with torch.no_grad():
        made.first.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        assert made.first.bias is not None
        made.first.bias.zero_()
    return made


def test_the_figures_are_those_of_what_the_layer_answers(net: Known) -> None:
    """Mean, standard deviation of all values, share within 0.05 of zero, and the histogram from 0 to 10."""
    looking = Activations(net)
    net(torch.tensor([[[[0.02, -3.0], [9.9, 11.0]]]]))
    layer = looking.layers["first ReLU"]
    # The second channel is the first with its sign changed.
    values = np.array([0.02, 0, 9.9, 11, 0, 3, 0, 0], np.float32)
    assert layer.mean == pytest.approx([values.mean()])
    assert layer.deviation == pytest.approx([values.std()])
    assert layer.near_zero == [5 / 8]
    expected = np.histogram(values, BINS, (0, HIGHEST))[0]
    assert layer.histogram == [expected.tolist()]
    assert sum(expected) == 7


def test_each_layer_is_told_in_the_order_of_the_pass(net: Known) -> None:
    """By the name of the layer before the nonlinearity, numbered where there are two; the last by its own."""
    looking = Activations(net)
    net(torch.rand(2, 1, 2, 2))
    net(torch.rand(2, 1, 2, 2))
    assert list(looking.layers) == ["first ReLU", "second ReLU", "second ReLU 2", "last"]
    assert {len(layer.mean) for layer in looking.layers.values()} == {2}


def test_only_some_steps_of_the_training_are_looked_at(net: Known) -> None:
    """Every third; what is only evaluated is none, and layers that are asked alone are none."""
    looking = Activations(net, every=3)
    for step in range(7):
        net.train()(torch.full((1, 1, 1, 1), float(step)))
        net.relu(net.first(torch.full((1, 1, 1, 1), 100.0)))
        net.eval()(torch.full((1, 1, 1, 1), 100.0))
    assert list(looking.layers) == ["first ReLU", "second ReLU", "second ReLU 2", "last"]
    assert looking.layers["first ReLU"].mean == [0.0, 1.5, 3.0]


def test_looking_changes_nothing(net: Known) -> None:
    """Neither answers nor gradients; and after `remove` nobody looks."""
    x = torch.rand(4, 1, 3, 3)
    plain = net(x)
    looking = Activations(net)
    seen = net(x)
    assert torch.equal(plain, seen)
    gradients = [torch.autograd.grad(answer.sum(), net.first.weight, retain_graph=True)[0] for answer in (plain, seen)]
    assert torch.equal(*gradients)
    looking.remove()
    net(x)
    assert len(looking.layers["last"].mean) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_what_was_seen_goes_on_after_an_interruption(net: Known) -> None:
    """State and load: the same steps are looked at as without."""
    first, whole = Activations(net, every=2), Activations(net, every=2)
    for value in (0.0, 2.0, 4.0):
        net(torch.full((1, 1, 1, 1), value))
    first.remove()
    second = Activations(net, every=2)
    second.load(first.state())
    for value in (6.0, 8.0):
        net(torch.full((1, 1, 1, 1), value))
    assert second.state() == whole.state()
    assert whole.layers["first ReLU"].mean == [0.0, 2.0, 4.0]


def test_numbers_of_half_precision_are_reckoned_with_in_float32(net: Known) -> None:
    """Under autocast the sum of many would not be one."""
    looking = Activations(net)
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.ones(1, 1, 100, 100))
    assert looking.layers["first ReLU"].mean == [0.5]
    assert looking.layers["first ReLU"].near_zero == [0.5]
