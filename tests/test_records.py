"""models.records: what runs of training wrote down."""

import json
from pathlib import Path
from typing import Any

import pytest

import models
from models import MODELS, records, weights_path
from models.formats import DataError
from models.records import Run, runs


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights, in place of the repository's."""
    monkeypatch.setattr(models, "weights_path", lambda name: tmp_path / f"{name}.pt")
    monkeypatch.setattr(records, "weights_path", models.weights_path)
    (tmp_path / "seeds").mkdir()
    return tmp_path


def record(seed: int, accuracy: float = 0.5) -> dict[str, Any]:
    test = {"n": 10, "accuracy": accuracy, "nll": 0.25}
    return {
        "seed": seed,
        "dataset": "mnist",
        "epochs": 3,
        "minutes": 1.5,
        "hardware": "1 core",
        "test": test,
        "more": 1,
    }


def test_the_run_with_weights_comes_first(written: Path) -> None:
    """Whatever its seed; then the others by number, those of this network only."""
    (written / "net.json").write_text(json.dumps(record(5)))
    for seed in (10, 9, 0):
        (written / "seeds" / f"net-{seed}.json").write_text(json.dumps(record(seed)))
    (written / "seeds" / "net_2-1.json").write_text(json.dumps(record(1)))
    found = runs("net")
    assert [run.seed for run in found] == [5, 0, 9, 10]
    assert found[0] == Run(5, "mnist", 3, 1.5, "1 core", 10, 0.5, 0.25)


@pytest.mark.parametrize("damage", ["{", "[]", '{"seed": 1}', json.dumps(record(1) | {"test": None})])
def test_a_damaged_record_is_named(written: Path, damage: str) -> None:
    """And what to do about it."""
    (written / "net.json").write_text(json.dumps(record(0)))
    (written / "seeds" / "net-1.json").write_text(damage)
    with pytest.raises(DataError, match=r"net-1\.json is not the record of a run .*train it again"):
        runs("net")


def test_a_network_never_trained_is_told(written: Path) -> None:
    """By the command that trains it."""
    with pytest.raises(DataError, match=r"net\.json; python -m models\.train net writes it"):
        runs("net")


@pytest.mark.parametrize("name", MODELS)
def test_every_committed_record_is_whole(name: str) -> None:
    """Each of another seed, on the network's own data set, with figures that can be."""
    if not weights_path(name).exists():
        pytest.skip(f"{name} is not trained yet")
    found = runs(name)
    assert len({run.seed for run in found}) == len(found)
    assert {run.dataset for run in found} == {MODELS[name].dataset}
    assert all(0 < run.accuracy <= 1 and run.nll > 0 and run.minutes > 0 for run in found)
