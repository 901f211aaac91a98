"""models.curves: a training run in pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from models import curves
from models.progress import Progress, Stepped
from models.teaching import Plan, teach
from tests.lesson import Little, task


def colours(path: Path) -> int:
    """How many, in a picture that can be read."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 100
        return len(image.convert("RGB").getcolors(2**24) or [])


def test_the_schedule_is_the_one_that_is_trained_by() -> None:
    """Learning rate and momentum at each step of a 1cycle (Smith 2018), as each step of a real run has them."""

    def made() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        adam = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
        return adam, OneCycleLR(adam, max_lr=0.1, total_steps=20, pct_start=0.25)

    adam, rate = made()
    expected = []
    for step in range(20):
        expected.append((adam.param_groups[0]["lr"], adam.param_groups[0]["betas"][0]))
        adam.step()
        if step < 19:
            rate.step()
    found = curves.schedule_values([made()], 20)
    assert found == {"AdamW 0": ([lr for lr, _ in expected], [momentum for _, momentum in expected])}
    rates, momenta = found["AdamW 0"]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == momenta.index(min(momenta))
    assert rates[-1] < rates[0] < max(rates)


def test_every_group_of_every_optimiser_has_its_schedule() -> None:
    """Those without momentum, too; the network is left as it is."""
    net = nn.Linear(2, 2)
    before = net.weight.clone()
    net.weight.grad = torch.ones_like(net.weight)
    sgd = torch.optim.SGD([{"params": [net.weight], "lr": 0.5}, {"params": [net.bias], "lr": 0.25}], momentum=0.9)
    adagrad = torch.optim.Adagrad([net.bias], lr=1.0)
    stepped: Stepped = [(sgd, LambdaLR(sgd, lambda step: 1 - step / 2)), (adagrad, LambdaLR(adagrad, lambda step: 1.0))]
    assert curves.schedule_values(stepped, 2) == {
        "SGD 0": ([0.5, 0.25], [0.9, 0.9]),
        "SGD 1": ([0.25, 0.125], [0.9, 0.9]),
        "Adagrad 0": ([1.0, 1.0], [0.0, 0.0]),
    }
    assert torch.equal(net.weight, before)


def test_the_smoothed_loss_is_the_mean_of_the_last_batches() -> None:
    """Of twenty, or of as many as there were."""
    values = np.random.default_rng(0).random(50).tolist()
    expected = [np.mean(values[max(0, i - 19) : i + 1]) for i in range(50)]
    assert curves._smoothed(values) == pytest.approx(expected)


@pytest.mark.slow
def test_a_run_is_drawn_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures that show something; the weights are those of a run that nobody looked at, and no hook stays."""
    monkeypatch.chdir(tmp_path)
    teach(task(), Plan(2), ["train"], tmp_path / "plain.pt")
    assert not list(tmp_path.rglob("*.png"))
    next(tmp_path.rglob("seed0-epochs2.pt")).unlink()
    teach(task(), Plan(2, plot=True), ["train"], tmp_path / "drawn.pt")
    drawn = {path.name: colours(path) for path in (tmp_path / "runs" / "digits" / "seed0-epochs2").iterdir()}
    assert drawn.keys() == {"schedule.png", "losses.png", "activations.png", "histograms.png"}
    assert all(count > 10 for count in drawn.values())
    plain, other = (torch.load(tmp_path / name) for name in ("plain.pt", "drawn.pt"))
    assert all(torch.equal(value, other[name]) for name, value in plain.items())


@pytest.mark.slow
def test_a_run_that_is_over_has_no_activations_to_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for afterwards, its losses are drawn, and what to do is told."""
    monkeypatch.chdir(tmp_path)
    teach(task(), Plan(1), ["train"], tmp_path / "w.pt")
    teach(task(), Plan(1, plot=True), ["train"], tmp_path / "w.pt")
    assert {path.name for path in tmp_path.rglob("*.png")} == {"schedule.png", "losses.png"}
    assert "seed0-epochs1.pt to train again" in capsys.readouterr().out


def test_the_losses_are_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches between the epochs, the mean of each at its end, held-out NLL and accuracy in percent."""
    from matplotlib.figure import Figure

    figure = Figure()
    monkeypatch.setattr(curves, "figure_of", lambda size: figure)
    history = [{"loss": 2.0, "nll": 1.5, "accuracy": 0.5}, {"loss": 1.0, "nll": 1.2, "accuracy": 0.6}]
    curves.losses(Progress(2, history=history, losses=[2.5, 1.5, 1.2, 0.8]), tmp_path / "losses.png")
    left, right = figure.axes
    batches, training, held = (np.array(line.get_data()).tolist() for line in left.lines)
    assert batches == [[0, 0.5, 1, 1.5], pytest.approx([2.5, 2, 5.2 / 3, 1.5])]
    assert training == [[1, 2], [2.0, 1.0]]
    assert held == [[1, 2], [1.5, 1.2]]
    assert np.array(right.lines[0].get_data()).tolist() == [[1, 2], [50, 60]]


def test_every_network_of_the_zoo_can_be_looked_into() -> None:
    """Each has layers by which its activations are told."""
    from models import MODELS
    from models.activations import Activations

    for name, recipe in MODELS.items():
        net = recipe.build().train()
        looking = Activations(net)
        net(torch.rand(2, 3, 32, 32))
        assert len(looking.layers) >= 2, name
    assert Little().training
