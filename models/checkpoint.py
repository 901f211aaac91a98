"""The whole state of a training run on disk, replaced atomically."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.files import replacing
from models.formats import DAMAGE, DataError
from models.progress import Run

AGAIN = "delete it to start again"


@dataclass
class Checkpoint:
    """identity: what makes a run this one, by name; a state of another is not gone on with.

    every_s: seconds after which `due` says that it is time to save again. saved: when it was, by time.monotonic.
    """

    path: Path
    identity: dict[str, Any]
    every_s: float
    saved: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.every_s

    def save(self, run: Run) -> None:
        with replacing(self.path) as path:
            torch.save({"identity": self.identity, **run.state()}, path)
        self.saved = time.monotonic()

    def restore(self, run: Run) -> None:
        """Bring the run to where it was saved, if it was. Raises DataError."""
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self._check(state["identity"])
            run.load(state)
        except (*DAMAGE, TypeError) as error:
            raise DataError(f"{self.path} is damaged or of another network; {AGAIN}") from error
        progress = run.progress
        batches = f" and {progress.step} batches" if progress.step else ""
        print(f"resuming {self.path} after epoch {progress.epoch}{batches}")

    def _check(self, found: dict[str, Any]) -> None:
        for name, value in self.identity.items():
            if found[name] != value:
                raise DataError(f"{self.path} is of another run ({name}: {found[name]}, now {value}); {AGAIN}")
