"""models.checkpoint: a run killed at any point goes on as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from models.checkpoint import Checkpoint
from models.files import replacing
from models.formats import DataError
from models.progress import Progress, Run
from models.recipe import Schedule
from tests.conftest import ROOT
from tests.lesson import BATCH, EPOCHS, Little, optimizers

STEPS = 4
# A checkpoint of every batch; the best weights are kept, too.
OFTEN = ("--checkpoint-seconds", "0", "--patience", "5")
IDENTITY = {"seed": 0, "images": {"train": "abc"}}


def learn(folder: Path, *options: str, kill_at: Sequence[int] = (0,)) -> tuple[list[int], str]:
    """The training command, started again after each kill: how each of these processes ended, and what all wrote."""
    folder.mkdir()
    kills = ",".join(map(str, kill_at))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KILL_AT": kills, "OMP_NUM_THREADS": "1"}
    # What a killed process has said must not be lost with it.
    environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "tests.lesson", *options]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [int(code) for code in re.findall(r"^ended (-?\d+)$", ended.stdout, re.M)], ended.stdout + ended.stderr


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of a run, and its record but for how long it took."""
    weights = torch.load(folder / "weights" / "digits.pt", weights_only=True)
    return weights, re.sub(r'"minutes": [\d.]+', "", (folder / "weights" / "digits.json").read_text())


def assert_same(folder: Path, expected: Path) -> None:
    (weights, record), (other, other_record) = outcome(folder), outcome(expected)
    assert weights.keys() == other.keys()
    for name, value in weights.items():
        assert torch.equal(value, other[name]), name
    assert record == other_record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run that nothing interrupted left its weights."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert learn(folder, *OFTEN)[0] == [0]
    return folder


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    """SIGKILL at random batches and files being replaced, five times, and the same weights and record to the bit."""
    # A batch, and its checkpoint before and after: each of these gets further, and none of them to the end.
    rng = random.Random(6)
    kills = [rng.randint(5, 9) for _ in range(5)]
    codes, told = learn(tmp_path / "killed", *OFTEN, kill_at=(*kills, 0))
    assert codes == [-signal.SIGKILL] * len(kills) + [0], told
    assert told.count("resuming") == len(kills)
    assert_same(tmp_path / "killed", whole)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_its_weights_writes_them_the_next_time(whole: Path, tmp_path: Path) -> None:
    """Between checkpoint and weights, while these are replaced, and between weights and record."""
    # Each epoch ends in a checkpoint; of the rest that is done anew each time the first event is the weights' own.
    kills = (EPOCHS * (STEPS + 2) + 1, 1, 2, 3, 4, 0)
    codes, told = learn(tmp_path / "killed", "--patience", "5", kill_at=kills)
    assert codes == [-signal.SIGKILL] * 5 + [0], told
    assert told.count("epoch 1/") == 1
    assert re.findall(r"(\d+) events", told) == ["4"]
    assert_same(tmp_path / "killed", whole)


@pytest.mark.slow
def test_without_checkpoints_within_an_epoch_one_begins_again(whole: Path, tmp_path: Path) -> None:
    """And still ends in the same place."""
    # An epoch, its checkpoint, and two batches more.
    codes, told = learn(tmp_path / "killed", "--patience", "5", kill_at=(STEPS + 2 + 2, 0))
    assert codes == [-signal.SIGKILL, 0], told
    assert "after epoch 1\n" in told
    assert_same(tmp_path / "killed", whole)


def run() -> Run:
    net = Little()
    return Run(net, optimizers(net, Schedule(EPOCHS, STEPS, BATCH)))


def stepped(made: Run) -> Run:
    """After one batch of noise."""
    made.net(torch.randn(BATCH, 3, 8, 8)).square().mean().backward()
    for optimizer, rate in made.stepped:
        optimizer.step()
        rate.step()
    made.progress = Progress(1, 2, 3.5, 4.5, [{"loss": 1.0, "accuracy": 0.5, "nll": 0.7}], [1.0, 2.5])
    made.keep_best()
    return made


def test_all_that_decides_the_next_step_comes_back(tmp_path: Path) -> None:
    """Weights, running means, moments, rates, progress, the best weights and both sources of randomness."""
    saved, restored = stepped(run()), run()
    saved.generator.manual_seed(5)
    torch.manual_seed(7)
    Checkpoint(tmp_path / "a" / "run.pt", IDENTITY, 0).save(saved)
    expected = torch.rand(3), torch.rand(3, generator=saved.generator)
    Checkpoint(tmp_path / "a" / "run.pt", IDENTITY, 0).restore(restored)
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.equal(torch.rand(3, generator=restored.generator), expected[1])
    assert restored.progress == saved.progress
    for one, other in zip(
        (saved.net.state_dict(), saved.best), (restored.net.state_dict(), restored.best), strict=True
    ):
        assert one
        assert other
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    (adam, rate), (other_adam, other_rate) = saved.stepped[0], restored.stepped[0]
    assert rate.state_dict().keys() == other_rate.state_dict().keys()
    assert rate.last_epoch == other_rate.last_epoch == 1
    assert adam.param_groups[0]["lr"] == other_adam.param_groups[0]["lr"]
    for kept, found in zip(adam.state.values(), other_adam.state.values(), strict=True):
        assert torch.equal(kept["exp_avg_sq"], found["exp_avg_sq"])


def test_without_a_checkpoint_a_run_begins(tmp_path: Path) -> None:
    """Nothing is told, and nothing changes."""
    fresh = run()
    Checkpoint(tmp_path / "run.pt", IDENTITY, 0).restore(fresh)
    assert fresh.progress == Progress()


@pytest.mark.parametrize("identity", [{"seed": 1, "images": {"train": "abc"}}, {"seed": 0, "images": {"train": "abd"}}])
def test_the_checkpoint_of_another_run_is_not_gone_on_with(identity: dict[str, object], tmp_path: Path) -> None:
    """Nor one on other images, and it is told what differs."""
    Checkpoint(tmp_path / "run.pt", IDENTITY, 0).save(run())
    with pytest.raises(DataError, match=r"run\.pt is of another run \((seed: 0, now 1|images: .*abd.*\); delete it)"):
        Checkpoint(tmp_path / "run.pt", identity, 0).restore(run())


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    """A file cut off, one that holds something else, and the state of another network."""
    path = tmp_path / "run.pt"
    Checkpoint(path, IDENTITY, 0).save(run())
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"run\.pt is damaged or of another network; delete it to start again"):
        Checkpoint(path, IDENTITY, 0).restore(run())
    for content in ([1, 2], {"identity": IDENTITY}, {"identity": IDENTITY, "net": {}, "stepped": []}):
        torch.save(content, path)
        with pytest.raises(DataError, match="damaged or of another network"):
            Checkpoint(path, IDENTITY, 0).restore(run())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """What fails half way leaves the old content."""
    path = tmp_path / "new" / "file"
    with replacing(path) as partial:
        partial.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("ago", "due"), [(900, False), (1001, True)])
def test_a_checkpoint_is_due_after_its_seconds(ago: float, due: bool, tmp_path: Path) -> None:
    """Counted from the last one."""
    checkpoint = Checkpoint(tmp_path / "run.pt", IDENTITY, 1000, saved=time.monotonic() - ago)
    assert checkpoint.due == due
    checkpoint.save(run())
    assert not checkpoint.due
