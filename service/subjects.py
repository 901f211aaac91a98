"""The limits of those who come with tokens: the same for each subject, for as many as are asking at a time.

There is no end to subjects, so what is measured of them lies in a table of fixed size that all workers map. A place
in it belongs to one subject, told by 128 bits of its name's SHA-256. Once nothing of a subject is under way and its
bucket is full again, its place tells nothing that an empty one would not, and another may have it. Where nobody's is
such a place, a newcomer is told to come back: no two ever share one.

Places are given away under a lock, which is held for microseconds and waited for no longer than PATIENCE_S. Taking
part in the count takes none: who enters looks afterwards whose the place is, and who gives a place away looks
afterwards whether somebody has entered.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from service.errors import NotReady
from service.quota import ROWS_A_WORKER, Meter, Quota, mapped_cells, runs

# How many are told apart at a time.
PLACES = 4096
TABLE = "subjects.quota"
PATIENCE_S, PAUSE_S = 0.02, 0.0005

Tag = tuple[int, int]


class Subjects:
    """What the subjects of tokens may ask for, and have asked."""

    def __init__(
        self,
        quota: Quota,
        folder: Path | None,
        number: int,
        workers: int,
        now_ns: Callable[[], int] = time.monotonic_ns,
        places: int = PLACES,
    ) -> None:
        """For one of so many workers, which share a folder; without one there is this worker only. Raises OSError."""
        rows = ROWS_A_WORKER * workers
        path = folder and folder / TABLE
        self._rows, ends = rows, (rows, rows + 2 * places, rows + 2 * places + places * rows)
        self._memory = mapped_cells(path, ends[2] + places * rows)
        self._first_arrival, self._first_count = ends[1:]
        cells = np.frombuffer(self._memory, np.int64)
        processes, tags, arrivals, counts = np.split(cells, ends)
        self._processes = processes
        self._tags = tags.reshape(places, 2)
        # Of each place by rows: when its bucket is empty, and the requests under way.
        self._arrivals, self._counts = arrivals.reshape(places, rows), counts.reshape(places, rows)
        self._quota = quota
        self._now_ns = now_ns
        self._row = number % rows
        # A predecessor that was killed left its last numbers.
        self._counts[:, self._row] = 0
        self._processes[self._row] = os.getpid()
        self._lock = os.open(path, os.O_RDWR | os.O_CLOEXEC) if path else None

    def of(self, subject: str) -> "SubjectMeter":
        digest = hashlib.sha256(subject.encode()).digest()
        return SubjectMeter(self, (_signed(digest[:8]), _signed(digest[8:16])))

    def entered(self, tag: Tag) -> tuple[int, Meter]:
        """The place of a subject, where one more request is under way now. Raises NotReady."""
        place = self._find(tag)
        while True:
            if place is not None:
                meter = self._enter(place)
                if self.holds(place, tag, meter):
                    return place, meter
            place = self._claimed(tag)

    def _enter(self, place: int) -> Meter:
        at = place * self._rows
        arrivals = self._memory[self._first_arrival + at :][: self._rows]
        counts = self._memory[self._first_count + at :][: self._rows]
        meter = Meter(self._quota, (arrivals, counts, self._memory[: self._rows]), self._row, self._now_ns)
        meter.enter()
        return meter

    def holds(self, place: int, tag: Tag, meter: Meter) -> bool:
        """Whether the place is still this subject's; who has entered another's leaves it."""
        at = self._rows + 2 * place
        if self._memory[at] == tag[0] and self._memory[at + 1] == tag[1]:
            return True
        meter.leave()
        return False

    def _find(self, tag: Tag) -> int | None:
        (found,) = np.nonzero((self._tags[:, 0] == tag[0]) & (self._tags[:, 1] == tag[1]))
        return int(found[0]) if found.size else None

    def _claimed(self, tag: Tag) -> int:
        """A place for a subject. Raises NotReady where there is none."""
        with self._locked():
            found = self._find(tag)
            if found is not None:
                # Another worker was quicker.
                return found
            place = self._take_free(tag)
            if place is None:
                self._forget_dead()
                place = self._take_free(tag)
        if place is None:
            raise NotReady("More users than can be told apart are asking just now; retry soon.")
        return place

    def _take_free(self, tag: Tag) -> int | None:
        free = (self._arrivals.max(axis=1) <= self._now_ns()) & ~self._counts.any(axis=1)
        for place in map(int, np.flatnonzero(free)):
            former = self._tags[place].copy()
            self._tags[place] = tag
            if not self._counts[place].any():
                self._arrivals[place] = 0
                return place
            # Its subject has come back in this moment.
            self._tags[place] = former
        return None

    def _forget_dead(self) -> None:
        """The requests under way of workers that were killed and have no successor of their number."""
        for row in np.flatnonzero(self._processes):
            if not runs(int(self._processes[row])):
                self._counts[:, row] = 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Raises NotReady where another worker stands still with the lock."""
        if self._lock is None:
            yield
            return
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NotReady("The limits of this user cannot be looked up just now; retry soon.") from None
                time.sleep(PAUSE_S)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


class SubjectMeter:
    """Measures one subject, as service.quota's Meter does; between two requests its place may go to another."""

    def __init__(self, subjects: Subjects, tag: Tag) -> None:
        self._subjects = subjects
        self._tag = tag
        self._held: tuple[int, Meter] | None = None

    def take(self) -> bytes:
        """As Meter's; also raises NotReady."""
        return self._entered().judge()

    def leave(self) -> None:
        self._meter.leave()

    def take_back(self) -> None:
        self._meter.take_back()

    @property
    def _meter(self) -> Meter:
        # Nobody takes a place in which a request is under way.
        assert self._held
        return self._held[1]

    def _entered(self) -> Meter:
        if self._held:
            place, meter = self._held
            meter.enter()
            if self._subjects.holds(place, self._tag, meter):
                return meter
        self._held = self._subjects.entered(self._tag)
        return self._held[1]


def _signed(digest: bytes) -> int:
    return int.from_bytes(digest, "big", signed=True)
