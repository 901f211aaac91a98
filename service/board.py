"""What the workers of one instance know of each other: how many connections each has, when it last had work, its pulse.

One row a worker in a small file that all of them map. Whoever writes a row is its only writer and reads may be a moment
old, so there is no lock; nothing depends on a row being right but how evenly and how fast work is done.
"""

import mmap
import time
from pathlib import Path

from service.mapped import mapped

# Rows for more workers than there will be: one that is replaced may overlap with its successor.
ROWS = 1024
CONNECTIONS, ACCEPTED, IMAGES, WORKED, PULSE, COLUMNS = 0, 1, 2, 3, 4, 5
SIZE = ROWS * COLUMNS * 4
USED = 1 << 31
# Its name in the folder that the workers of an instance share.
BOARD = "workers.board"
# A worker without an image in hand is between two of them, not idle, until so long has passed.
IDLE_S = 0.02
# The largest number a cell holds.
LARGEST = (1 << 32) - 1
# What a worker's pulse says of it: not there yet, at a standstill, or else well.
UNBORN, STUCK = 0, LARGEST


class Board:
    """One worker's row, and a view of the others'. Without a file there are no others."""

    def __init__(self, path: Path | None = None, row: int = 0) -> None:
        self._map = mapped(path, SIZE) if path else mmap.mmap(-1, SIZE)
        self._cells = memoryview(self._map).cast("I")
        self._row = row % ROWS
        self._connections = self._images = 0
        self._used = USED
        # A predecessor that was killed left its last numbers.
        self._cells[self._row * COLUMNS + CONNECTIONS] = USED
        self._cells[self._row * COLUMNS + IMAGES] = 0
        self._cells[self._row * COLUMNS + PULSE] = UNBORN
        self._others: list[int] = []
        self.refresh()

    def refresh(self) -> None:
        """Look for workers that have started or gone since."""
        used = (row for row in range(ROWS) if self._cells[row * COLUMNS] & USED)
        self._others = [row for row in used if row != self._row]

    @property
    def connections(self) -> int:
        return self._connections

    @connections.setter
    def connections(self, number: int) -> None:
        self._connections = number
        self._cells[self._row * COLUMNS + CONNECTIONS] = self._used | number

    def count_accepted(self) -> None:
        """One more connection has been accepted."""
        cell = self._row * COLUMNS + ACCEPTED
        self._cells[cell] = (self._cells[cell] + 1) & LARGEST

    def accepted(self) -> list[int]:
        """The connections that each worker has ever accepted, this one's first; only differences mean something."""
        return [self._cells[row * COLUMNS + ACCEPTED] for row in (self._row, *self._others)]

    def connections_of_all(self) -> list[int]:
        """The connections that each worker has, this one's first."""
        return [self._connections, *(self._cells[row * COLUMNS + CONNECTIONS] & ~USED for row in self._others)]

    def add_images(self, number: int) -> None:
        """So many more images are in hand, or fewer."""
        self._images += number
        self._cells[self._row * COLUMNS + IMAGES] = self._images
        if not self._images:
            # Nobody asks when it worked while it works.
            self._cells[self._row * COLUMNS + WORKED] = _milliseconds()

    @property
    def others_idle(self) -> bool:
        """Whether no other worker has an image in hand, or has had one in the last IDLE_S seconds."""
        cells, now = self._cells, _milliseconds()
        return not any(
            cells[row * COLUMNS + IMAGES] or (now - cells[row * COLUMNS + WORKED]) & LARGEST < IDLE_S * 1000
            for row in self._others
        )

    def beat(self, stuck: bool = False) -> None:
        """Tell who supervises that this worker's event loop turns, or that it had better be replaced."""
        cell = self._row * COLUMNS + PULSE
        self._cells[cell] = STUCK if stuck else self._cells[cell] % (STUCK - 1) + 1

    def leave(self) -> None:
        """Others forget this worker at their next refresh, though it may still have something to finish."""
        self._used = 0
        self.connections = self._connections


class Pulses:
    """The workers' pulses, as who supervises them sees them."""

    def __init__(self, path: Path) -> None:
        self._cells = memoryview(mapped(path, SIZE)).cast("I")

    def of(self, number: int) -> int:
        """UNBORN, STUCK, or what changes with every beat."""
        return self._cells[number % ROWS * COLUMNS + PULSE]


def _milliseconds() -> int:
    """Of the system's monotonic clock, which all processes share, as far as a cell holds it."""
    return time.monotonic_ns() // 1_000_000 & LARGEST
