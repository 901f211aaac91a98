"""What a model answers under a condition; kept on disk, so that an interrupted run goes on where it stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np

from export.parity import run
from export.shift.conditions import Condition
from models.formats import DataError, read_npz
from service.backends import Backend, Flags, Floats, Outputs
from service.files import sha256, write_whole

BATCH_SIZE = 64


@dataclass(frozen=True)
class Answers:
    """Of N images: calibrated probabilities (N, C), and the score (N,) that the flag is_ood (N,) is decided by."""

    probabilities: Floats
    ood_score: Floats
    is_ood: Flags

    @classmethod
    def of(cls, outputs: Outputs) -> "Answers":
        return cls(outputs.probabilities, outputs.ood_score, outputs.is_ood)


@dataclass(frozen=True)
class Kept:
    """The answers of one model, a file for each condition."""

    directory: Path

    def answers(self, condition: Condition, backend: Backend, tell: Callable[[int], object]) -> Answers:
        """What the model answers, or has answered to the same images before. `tell` hears, as it goes, of how many.

        Raises OSError.
        """
        parts = condition.parts()
        first = next(parts)
        # By its first images a condition is known again: other code or another library would draw them differently.
        drawn = sha256(first.tobytes())
        path = self.directory / f"{condition.name}-{condition.n}-{drawn[:16]}.npz"
        found = _read(path)
        if found:
            tell(condition.n)
            return found
        outputs = []
        for part in chain([first], parts):
            outputs.append(run(backend, part, BATCH_SIZE))
            tell(len(part))
        answers = Answers.of(Outputs.concatenate(outputs))
        _write(path, answers)
        return answers


def _read(path: Path) -> Answers | None:
    """None where there is nothing whole."""
    if not path.exists():
        return None
    try:
        arrays = read_npz(path, tuple(Answers.__dataclass_fields__))
    except DataError:
        return None
    return Answers(**arrays)  # type: ignore[arg-type]


def _write(path: Path, answers: Answers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = BytesIO()
    np.savez(file, allow_pickle=False, **vars(answers))
    write_whole(path, file.getvalue(), 0o644)
