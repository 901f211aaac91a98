"""A network whose convolutions are separated into columns and rows, and what it starts from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import summary, teaching
from models.formats import DataError
from models.lean_vgg import LeanVGG, Separated, separate
from models.progress import Stepped
from models.recipe import Ancestor, Schedule
from models.task import Task
from models.teaching import Plan, teach
from models.whitened_vgg import WhitenedVGG
from tests import lesson

widths = st.integers(1, 6)


@given(widths, widths, st.floats(0, 1), st.integers(0, 9))
@torch.inference_mode()
def test_two_convolutions_do_as_nearly_what_one_does_as_their_rank_allows(
    channels: int, width: int, share: float, seed: int
) -> None:
    """Their product differs by the singular values left out (Eckart & Young 1936), of which full rank has none."""
    torch.manual_seed(seed)
    full = 3 * min(channels, width)
    rank = max(1, round(share * full))
    whole, separated = nn.Conv2d(channels, width, 3, padding=1, bias=False), Separated(channels, rank, width)
    separated.approximate(whole.weight)
    columns, rows = separated.columns.weight[..., 0], separated.rows.weight[:, :, 0]
    product = torch.einsum("rih,orw->oihw", columns, rows)
    matrix = whole.weight.permute(1, 2, 0, 3).reshape(3 * channels, 3 * width)
    left_out = torch.linalg.svdvals(matrix)[rank:].square().sum().item()
    assert (product - whole.weight).square().sum().item() == pytest.approx(left_out, rel=1e-3, abs=1e-8)
    if rank == full:
        images = torch.rand(2, channels, 7, 5)
        assert torch.allclose(separated(images), whole(images), atol=1e-5)


@torch.inference_mode()
def test_it_starts_as_the_network_that_it_inherits_from() -> None:
    """With ranks that lose nothing, it answers as that does to one look."""
    torch.manual_seed(0)
    whole, lean = WhitenedVGG().eval(), LeanVGG((72, 192, 192, 768, 768, 768)).eval()
    for norm in (module for module in whole.modules() if isinstance(module, nn.BatchNorm2d)):
        for state in (norm.bias, norm.running_mean):
            assert state is not None
            state.uniform_()
    separate(lean, whole.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(lean(images), whole.classify(whole._features(images)), atol=1e-4)


def test_a_network_of_another_kind_leaves_nothing_to_inherit() -> None:
    with pytest.raises(KeyError, match="conv1"):
        separate(LeanVGG(), lesson.Little().state_dict())


def test_it_has_the_size_its_docstring_says() -> None:
    """By way of 31, 15, 7 and 3 pixels, in one look, trained or not."""
    net, sides = LeanVGG(), []
    for layer in (net.whiten, *net.blocks):
        layer.register_forward_hook(lambda module, given, made: sides.append(made.shape[-1]))
    for each in (net, net.eval()):
        assert each(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sides == [31, 15, 7, 3] * 2
    assert (summary.parameters(net), summary.macs(net)) == (1_086_904, 59_587_744)


# An ancestor, of any network.


@pytest.fixture
def ancestor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> lesson.Little:
    """Its weights lie in tmp_path, which is where runs are written."""
    torch.manual_seed(1)
    net = lesson.Little()
    torch.save(net.state_dict(), tmp_path / "an ancestor.pt")
    (tmp_path / "an ancestor.json").write_text("{}")
    monkeypatch.setattr(teaching, "weights_path", lambda name: tmp_path / f"{name}.pt")
    monkeypatch.setattr(teaching, "untrained", lambda name: lesson.Little())
    monkeypatch.chdir(tmp_path)
    return net


def still(net: nn.Module, schedule: Schedule) -> Stepped:
    """No optimiser: what is trained stays as it started."""
    return []


def started_from(name: str) -> Task:
    inherited = Ancestor(name, lambda net, known: net.load_state_dict(known))
    return lesson.task(replace(lesson.RECIPE, ancestor=inherited, optimizers=still))


def test_a_network_starts_with_what_its_ancestor_leaves_it(ancestor: lesson.Little, tmp_path: Path) -> None:
    """And the record tells whose it was."""
    teach(started_from("an ancestor"), Plan(epochs=1), ["command"], tmp_path / "weights.pt")
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, parameter in ancestor.named_parameters():
        assert torch.equal(found[name], parameter)
    assert json.loads((tmp_path / "weights.json").read_text())["ancestor"] == "an ancestor"


def test_without_its_ancestor_it_does_not_start(ancestor: lesson.Little, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*nobody\.pt"):
        teach(started_from("nobody"), Plan(epochs=1), ["command"], tmp_path / "weights.pt")
