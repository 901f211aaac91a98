"""How much one key may ask for: so many requests a second, a burst of them, so many at a time. By all workers together.

The rate is kept by the generic cell rate algorithm (ITU-T I.371): of a full bucket that leaks, one number, the time
when all that was let in would have come at the even rate. Each worker writes that time, and the requests it has under
way, to a row of its own in a small file that all workers of the instance map; the latest time holds, and the sum of
the requests. So there is no lock, and no limit is exceeded but by requests that meet within the same microseconds.
"""

import hashlib
import math
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.board import ROWS
from service.errors import TooManyRequests

SECOND_NS = 1_000_000_000
# When the bucket is empty, in ns; requests under way; the worker's process.
ARRIVAL, UNDER_WAY, PROCESS, COLUMNS = 0, 1, 2, 3


@dataclass(frozen=True)
class Quota:
    """0: no limit. `interval_ns` lies between two requests at the even rate, of which `burst` may come at once."""

    interval_ns: int = 0
    burst: int = 0
    concurrent: int = 0

    @classmethod
    def of(cls, per_second: float | None, burst: int | None, concurrent: int | None) -> "Quota":
        """`burst` is one second's requests unless told."""
        if per_second is None:
            return cls(concurrent=concurrent or 0)
        return cls(max(1, round(SECOND_NS / per_second)), burst or max(1, math.ceil(per_second)), concurrent or 0)

    @property
    def policy(self) -> bytes:
        """As RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10) has it."""
        policies = []
        if self.burst:
            window_s = math.ceil(self.burst * self.interval_ns / SECOND_NS)
            policies.append(b'"rate";q=%d;w=%d' % (self.burst, window_s))
        if self.concurrent:
            policies.append(b'"concurrent";q=%d;qu="concurrent-requests"' % self.concurrent)
        return b", ".join(policies)


class Meter:
    """Measures what is asked for under one name. `quota` may change, and what was measured holds."""

    def __init__(
        self, quota: Quota, path: Path | None = None, row: int = 0, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`path` is the file that the workers share for this name; without one there is this worker only."""
        self.quota = quota
        self._now_ns = now_ns
        size = COLUMNS * ROWS * 8
        self._cells = np.frombuffer(_mapped(path, size) if path else bytearray(size), np.int64).reshape(COLUMNS, ROWS)
        self._row = row % ROWS
        self._process = os.getpid()
        # A predecessor that was killed left its last numbers.
        self._cells[UNDER_WAY, self._row] = 0
        self._cells[PROCESS, self._row] = self._process

    def take(self) -> bytes:
        """Let one request in; `leave` ends it. Returns the header lines of its answer. Raises TooManyRequests."""
        quota = self.quota
        if quota.concurrent and self._under_way() >= quota.concurrent:
            raise TooManyRequests(
                f"There are {quota.concurrent} requests of this key under way, as many as it may have at a time.",
                1,
                self._lines(),
            )
        if quota.burst:
            now = self._now_ns()
            arrival = max(int(self._cells[ARRIVAL].max()), now) + quota.interval_ns
            early = arrival - now - quota.burst * quota.interval_ns
            if early > 0:
                raise TooManyRequests(
                    f"This key may ask {SECOND_NS / quota.interval_ns:g} times a second, {quota.burst} times at once.",
                    math.ceil(early / SECOND_NS),
                    self._lines(),
                )
            self._cells[ARRIVAL, self._row] = arrival
        self._cells[UNDER_WAY, self._row] += 1
        return self._lines()

    def leave(self) -> None:
        """A request that was let in is over."""
        self._cells[UNDER_WAY, self._row] -= 1

    def take_back(self) -> None:
        """A request that was let in is let in a second time, and is to count once."""
        self.leave()
        if self.quota.burst:
            self._cells[ARRIVAL, self._row] -= self.quota.interval_ns

    def _under_way(self) -> int:
        under_way = int(self._cells[UNDER_WAY].sum())
        if under_way >= self.quota.concurrent:
            # The rows of workers that were killed and have no successor of their number.
            for row in np.flatnonzero(self._cells[UNDER_WAY]):
                if row != self._row and not _runs(int(self._cells[PROCESS, row])):
                    self._cells[UNDER_WAY, row] = 0
            under_way = int(self._cells[UNDER_WAY].sum())
        return under_way

    def _lines(self) -> bytes:
        quota = self.quota
        lines = b"ratelimit-policy: %b\r\n" % quota.policy
        if quota.burst:
            used = max(int(self._cells[ARRIVAL].max()) - self._now_ns(), 0)
            left = max(quota.burst - math.ceil(used / quota.interval_ns), 0)
            lines += b'ratelimit: "rate";r=%d;t=%d\r\n' % (left, math.ceil(used / SECOND_NS))
        return lines


class Meters:
    """One of each name that has a limit, in the folder that all workers of an instance share."""

    def __init__(self, folder: Path | None, row: int) -> None:
        self._folder = folder
        self._row = row
        self._meters: dict[str, Meter] = {}

    def of(self, name: str, quota: Quota) -> Meter | None:
        """None where there is nothing to measure."""
        if quota == Quota():
            return None
        meter = self._meters.get(name)
        if meter is None:
            path = self._folder and self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.quota"
            meter = self._meters[name] = Meter(quota, path, self._row)
        meter.quota = quota
        return meter


def _runs(process: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _mapped(path: Path, size: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(file, size)
        return mmap.mmap(file, size)
    finally:
        os.close(file)
