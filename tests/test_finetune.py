"""models.finetune: a trained network learns other classes, its last layer first."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models import MODELS, finetune
from models.finetune import frozen_steps, head_of, headed, remember
from models.formats import DataError
from models.recipe import Schedule


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10_large", "lenet5", "cifar_cnn"])
def test_a_network_of_the_zoo_takes_another_last_layer(name: str) -> None:
    """For so many classes, and answering 0; all else has the shapes that it had."""
    net, source = headed(name, 7), MODELS[name].build()
    assert torch.equal(net.eval()(torch.rand(2, 3, 32, 32)), torch.zeros(2, 7))
    place, head = head_of(net)
    assert head.out_features == 7
    for key, value in source.state_dict().items():
        if not key.startswith(place):
            assert net.state_dict()[key].shape == value.shape


def taught(epochs: int = 4, steps: int = 3) -> list[dict[str, torch.Tensor]]:
    """The weights of `digits` before each step of a fine-tuning on noise, and after the last."""
    recipe = finetune.recipe("digits", 3, 24, mirror=False)
    net = recipe.build()
    recipe.prepare(net, torch.empty(0))
    schedule = Schedule(epochs, steps, 8)
    stepped, states = recipe.optimizers(net, schedule), []
    net.train()
    for _ in range(schedule.total_steps):
        states.append({name: value.clone() for name, value in net.named_parameters()})
        nn.functional.cross_entropy(net(torch.rand(8, 3, 32, 32)), torch.arange(8) % 3).backward()
        for optimizer, rate in stepped:
            optimizer.step()
            rate.step()
        net.zero_grad()
    return [*states, dict(net.named_parameters())]


def test_first_the_last_layer_learns_alone_and_then_all_do() -> None:
    """In the first quarter of the epochs nothing else moves, not by a bit; afterwards every layer does."""
    states, frozen = taught(), 3
    place, _ = head_of(headed("digits", 3))
    known = finetune.weights("digits")
    for name, before in states[0].items():
        if name.startswith(place):
            assert not torch.equal(before, states[1][name])
        else:
            assert torch.equal(before, known[name])
            assert torch.equal(before, states[frozen][name]), name
            assert not torch.equal(before, states[frozen + 2][name]), name


@pytest.mark.parametrize(("epochs", "frozen"), [(1, 1), (4, 1), (20, 5)])
def test_how_long_the_others_wait(epochs: int, frozen: int) -> None:
    """Whole epochs, one at least."""
    assert frozen_steps(Schedule(epochs, 10, 8)) == 10 * frozen


def test_rates_rise_and_fall() -> None:
    """Each within its time, and to about 0."""
    net = headed("digits", 3)
    schedule = Schedule(4, 25, 8)
    ((adamw, rate),) = finetune.optimizers(net, schedule, head_rate=0.5)
    rates = []
    for _ in range(schedule.total_steps):
        rates.append([group["lr"] for group in adamw.param_groups])
        adamw.step()
        rate.step()
    body, head = zip(*rates, strict=True)
    assert set(body[:25]) == {0}
    assert body[25] > 0
    assert max(head) == pytest.approx(0.5, rel=0.02)
    assert max(body) == pytest.approx(finetune.BODY_RATE, rel=0.02)
    assert head.index(max(head)) < 15
    assert body.index(max(body)) < 40
    assert head[-1] < 0.01
    assert body[-1] < 0.01 * finetune.BODY_RATE


def test_weights_of_another_network_are_refused() -> None:
    """Those of the same network are taken, all but the last layer's."""
    known, net = finetune.weights("digits"), headed("digits", 3)
    remember(known, net, torch.empty(0))
    place, head = head_of(net)
    assert not head.weight.any()
    assert all(
        torch.equal(net.state_dict()[name], value) for name, value in known.items() if not name.startswith(place)
    )
    first = next(iter(known))
    for other in ({**known, "more": torch.ones(1)}, {k: v for k, v in known.items() if k != first}):
        with pytest.raises(DataError, match="are not the weights of"):
            remember(other, net, torch.empty(0))
    with pytest.raises(DataError, match="are not the weights of"):
        remember(finetune.weights("cifar10"), net, torch.empty(0))


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the command that makes them."""
    monkeypatch.setattr(finetune, "weights_path", lambda name: tmp_path / "none.pt")
    with pytest.raises(DataError, match=r"no weights of digits at .*none\.pt .*python -m models\.train digits"):
        finetune.recipe("digits", 3, 100, mirror=True)


def test_a_network_whose_last_layer_is_no_linear_one_is_refused() -> None:
    """For nobody knows what to put in its place."""
    with pytest.raises(DataError, match="last layer of SimpleCNN is no linear one; start from another network"):
        headed("simple_cnn", 3)
    with pytest.raises(DataError, match="last layer of Sequential is no linear one"):
        head_of(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1), nn.ReLU()))
