"""models.tensorboard: the log of a run as TensorBoard reads it."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.formats import DataError
from models.progress import Progress
from models.teaching import Plan, teach
from models.tensorboard import Log
from tests.lesson import task


def events(folder: Path) -> Iterator[Any]:
    """Of every file of a log: records of a length, its checksum, the event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            yield Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_log_holds_what_it_is_given(tmp_path: Path) -> None:
    """Losses and rates by batch, figures by epoch."""
    log = Log(tmp_path, 0)
    log.batch(0, 2.5, [0.5, 0.25])
    log.batch(1, 1.5, [0.25, 0.125])
    log.epoch(1, Progress(1, history=[{"loss": 2.0, "accuracy": 0.75, "nll": 1.25}]))
    log.close()
    assert scalars(tmp_path) == {
        "train/loss": [(0, 2.5), (1, 1.5)],
        "rate/0": [(0, 0.5), (1, 0.25)],
        "rate/1": [(0, 0.25), (1, 0.125)],
        "epoch/loss": [(1, 2.0)],
        "epoch/accuracy": [(1, 0.75)],
        "epoch/nll": [(1, 1.25)],
    }


def test_what_is_done_again_after_a_kill_is_shown_once(tmp_path: Path) -> None:
    """The file of the next process begins by saying from which batch on the earlier ones no longer count."""
    first, second = Log(tmp_path, 0), Log(tmp_path, 7)
    first.batch(6, 2.5, [])
    first.close()
    second.batch(7, 1.5, [])
    second.close()
    starts = [event.step for event in events(tmp_path) if event.session_log.status == 1]
    assert starts == [0, 7]
    assert scalars(tmp_path) == {"train/loss": [(6, 2.5), (7, 1.5)]}


@pytest.mark.slow
def test_a_run_is_logged_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch and epoch of it, and nothing otherwise."""
    monkeypatch.chdir(tmp_path)
    teach(task(), Plan(2, tensorboard=True), ["train"], tmp_path / "w.pt")
    teach(task(), Plan(1), ["train"], tmp_path / "w.pt")
    assert [path.name for path in (tmp_path / "runs" / "digits").iterdir() if path.is_dir()] == ["seed0-epochs2"]
    found = scalars(tmp_path / "runs" / "digits" / "seed0-epochs2")
    assert [step for step, _ in found["train/loss"]] == list(range(8))
    assert [step for step, _ in found["epoch/accuracy"]] == [3, 7]
    assert found["epoch/loss"][0][1] == pytest.approx(sum(loss for _, loss in found["train/loss"][:4]) / 4)
    assert len({rate for _, rate in found["rate/0"]}) == 8


def test_without_tensorboardx_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training without a log needs none."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(DataError, match="pip install tensorboardX, or leave the option out"):
        Log(tmp_path, 0)
