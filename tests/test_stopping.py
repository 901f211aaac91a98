"""models.stopping: training ends when it no longer helps, with the weights of the best epoch."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import teaching
from models.evaluate import Score
from models.progress import Weights
from models.stopping import best_epoch, exhausted
from models.teaching import Plan, teach
from tests.lesson import task

NLL = (0.9, 0.5, 0.7, 0.5, 0.6, 0.4, 0.3)


def history(*losses: float) -> list[dict[str, float]]:
    return [{"nll": loss} for loss in losses]


@given(st.lists(st.floats(0, 10), min_size=1), st.integers(1, 5))
def test_a_run_is_exhausted_once_so_many_epochs_are_no_better(losses: list[float], patience: int) -> None:
    """None of the last is below what came before, and there was one before."""
    recent, before = losses[-patience:], losses[:-patience]
    assert exhausted(history(*losses), patience) == (bool(before) and min(recent) >= min(before))


@given(st.lists(st.floats(0, 10), min_size=1))
def test_the_best_epoch_is_the_first_of_the_least_nll(losses: list[float]) -> None:
    """Counted from 1."""
    found = best_epoch(history(*losses))
    assert losses[found - 1] == min(losses)
    assert min(losses) not in losses[: found - 1]


def test_a_run_that_has_not_begun_is_not_exhausted() -> None:
    """Nor has it a best epoch."""
    assert not exhausted([], 1)
    with pytest.raises(ValueError, match="empty"):
        best_epoch([])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Weights]:
    """The weights that each epoch ended in; held-out images say NLL of them."""
    weights: list[Weights] = []

    def score(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> Score:
        weights.append({name: value.clone() for name, value in net.state_dict().items()})
        return Score(30, 0.5, NLL[len(weights) - 1])

    monkeypatch.setattr(teaching, "score", score)
    monkeypatch.chdir(tmp_path)
    return weights


@pytest.mark.parametrize(("patience", "epochs", "best"), [(2, 4, 2), (4, 6, 6), (1, 3, 2)])
def test_training_stops_early_and_keeps_the_best(
    patience: int, epochs: int, best: int, seen: list[Weights], tmp_path: Path
) -> None:
    """After so many epochs without a lower NLL; the record names the epoch, and the test is of those weights."""
    # The last score is that of the test.
    teach(task(), Plan(epochs=6, patience=patience), ["train"], tmp_path / "w.pt")
    assert len(seen) == epochs + 1
    kept = torch.load(tmp_path / "w.pt", weights_only=True)
    for name, value in kept.items():
        assert torch.equal(value, seen[best - 1][name])
        assert torch.equal(value, seen[-1][name])
    assert not torch.equal(seen[best - 1]["head.weight"], seen[best - 2]["head.weight"])
    assert f'"epoch": {best}' in (tmp_path / "w.json").read_text()
    assert f"--patience {patience}" in (tmp_path / "w.json").read_text()


def test_without_patience_the_last_weights_are_kept(seen: list[Weights], tmp_path: Path) -> None:
    """As the committed recipes have it."""
    teach(task(), Plan(epochs=3), ["train"], tmp_path / "w.pt")
    assert len(seen) == 4
    kept = torch.load(tmp_path / "w.pt", weights_only=True)
    assert all(torch.equal(value, seen[2][name]) for name, value in kept.items())
    assert "early_stopping" not in (tmp_path / "w.json").read_text()
