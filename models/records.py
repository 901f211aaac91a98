"""Records of training: one file a run, written by models.train; the weights of seed 0 are kept beside theirs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import record_path, weights_path
from models.formats import DataError


@dataclass(frozen=True)
class Run:
    """accuracy in [0, 1] and nll in nats: of the uncalibrated network, over the n images of the test set."""

    seed: int
    dataset: str
    epochs: int
    minutes: float
    hardware: str
    n: int
    accuracy: float
    nll: float


def runs(name: str) -> list[Run]:
    """Every recorded run of a network: first that whose weights there are, then the others by seed.

    Raises DataError where there is none, or one that is damaged.
    """
    kept, pattern = weights_path(name).with_suffix(".json"), record_path(name, 0)
    if not kept.exists():
        raise DataError(f"there is no {kept}; python -m models.train {name} writes it")
    others = (_run(path) for path in pattern.parent.glob(f"{name}-*.json"))
    return [_run(kept), *sorted(others, key=lambda run: run.seed)]


def _run(path: Path) -> Run:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        whole = {name: record[name] for name in ("seed", "dataset", "epochs", "minutes", "hardware")}
        return Run(**whole, n=record["test"]["n"], accuracy=record["test"]["accuracy"], nll=record["test"]["nll"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the record of a run ({error!r}); train it again") from error
