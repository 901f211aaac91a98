"""How much one key or user may ask for: so many requests a second, a burst of them, so many at a time; of all workers.

The rate is kept by the generic cell rate algorithm (ITU-T I.371): of a full bucket that leaks, one number, the time
when all that was let in would have come at the even rate. Each worker writes that time, and the requests it has under
way, to a row of its own in a small file that all workers of the instance map; the latest time holds, and the sum of
the requests. So there is no lock. Of requests that meet within the same microseconds a few too many may pass the rate,
and one too few the number at a time.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from service.errors import NotReady, TooManyRequests
from service.mapped import mapped

SECOND_NS = 1_000_000_000
# A worker's successors overlap with it where all are replaced, and that again; each needs a row.
ROWS_A_WORKER = 4

# Of 64 bits each.
Cells: TypeAlias = "memoryview[int]"
# When the bucket is empty, in ns; requests under way; the worker's process.
Rows: TypeAlias = tuple[Cells, Cells, Cells]

logger = logging.getLogger("trueodds")


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

    @cached_property
    def policy(self) -> bytes:
        """As RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10) has it."""
        policies = []
        if self.burst:
            window_s = math.ceil(self.burst * self.interval_ns / SECOND_NS)
            policies.append(b'"rate";q=%d;w=%d' % (self.burst, window_s))
        if self.concurrent:
            policies.append(b'"concurrent";q=%d;qu="concurrent-requests"' % self.concurrent)
        return b", ".join(policies)

    def lines(self, used_ns: int) -> bytes:
        """Of an answer's head, where the bucket is empty in so long: RateLimit-Policy and RateLimit."""
        if not self.burst:
            return b"ratelimit-policy: %b\r\n" % self.policy
        # Rounded up, both.
        left = self.burst + -used_ns // self.interval_ns
        return b'ratelimit-policy: %b\r\nratelimit: "rate";r=%d;t=%d\r\n' % (
            self.policy,
            left if left > 0 else 0,
            -(-used_ns // SECOND_NS),
        )


class Meter:
    """Measures what is asked for under one name. `quota` may change, and what was measured holds."""

    def __init__(self, quota: Quota, rows: Rows, row: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.quota = quota
        self._arrivals, self._counts, self._processes = rows
        self._row = row
        self._now_ns = now_ns

    @classmethod
    def shared(
        cls,
        quota: Quota,
        path: Path | None = None,
        row: int = 0,
        rows: int = ROWS_A_WORKER,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> "Meter":
        """By the file that the workers share for one name; without one there is this worker only. Raises OSError."""
        cells = mapped_cells(path, 3 * rows)
        meter = cls(quota, (cells[:rows], cells[rows : 2 * rows], cells[2 * rows :]), row % rows, now_ns)
        # A predecessor that was killed left its last numbers.
        meter._counts[meter._row] = 0
        meter._processes[meter._row] = os.getpid()
        return meter

    def take(self) -> bytes:
        """Let one request in; `leave` ends it. Returns the header lines of its answer. Raises TooManyRequests."""
        self.enter()
        return self.judge()

    def enter(self) -> None:
        """A request is under way, whatever is said to it."""
        self._counts[self._row] += 1

    def judge(self) -> bytes:
        """What `take` does after a request has entered; one that is refused has left."""
        try:
            return self._judge()
        except TooManyRequests:
            self.leave()
            raise

    def _judge(self) -> bytes:
        quota = self.quota
        now = arrival = 0
        if quota.burst:
            now = self._now_ns()
            arrival = max(now, *self._arrivals)
        if quota.concurrent and self._under_way() > quota.concurrent:
            raise TooManyRequests(
                f"There are {quota.concurrent} requests of yours under way, as many as you may have at a time.",
                1,
                quota.lines(arrival - now),
            )
        if quota.burst:
            early = arrival - now - (quota.burst - 1) * quota.interval_ns
            if early > 0:
                raise TooManyRequests(
                    f"You may ask {SECOND_NS / quota.interval_ns:g} times a second, {quota.burst} times at once.",
                    math.ceil(early / SECOND_NS),
                    quota.lines(arrival - now),
                )
            arrival += quota.interval_ns
            self._arrivals[self._row] = arrival
        return quota.lines(arrival - now)

    def leave(self) -> None:
        """A request that has entered is over."""
        self._counts[self._row] -= 1

    def take_back(self) -> None:
        """A request that was let in is let in a second time, and is to count once."""
        self.leave()
        if self.quota.burst:
            self._arrivals[self._row] -= self.quota.interval_ns

    def _under_way(self) -> int:
        under_way = sum(self._counts)
        if under_way > self.quota.concurrent:
            for row, process in enumerate(self._processes):
                # That of a worker that was killed and has no successor of its number.
                if self._counts[row] and not runs(process):
                    self._counts[row] = 0
            under_way = sum(self._counts)
        return under_way


class Meters:
    """One of each name that has a limit, in the folder that all workers of an instance share."""

    def __init__(self, folder: Path | None, number: int, workers: int = 1) -> None:
        self._folder = folder
        self._number = number
        self._rows = ROWS_A_WORKER * workers
        self._meters: dict[str, Meter] = {}

    def of(self, name: str, quota: Quota) -> Meter | None:
        """None where there is nothing to measure. Raises NotReady where there is no room to measure it in."""
        if quota == Quota():
            return None
        meter = self._meters.get(name)
        if meter is None:
            path = self._folder and self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.quota"
            try:
                meter = self._meters[name] = Meter.shared(quota, path, self._number, self._rows)
            except OSError as error:
                logger.warning("the limits of a key cannot be kept: %s", error)
                raise NotReady("The limits of this key cannot be kept just now; retry soon.") from error
        meter.quota = quota
        return meter


def mapped_cells(path: Path | None, number: int) -> Cells:
    """So many of a shared file, or of this process alone. Raises OSError."""
    return memoryview(mapped(path, number * 8) if path else bytearray(number * 8)).cast("q")


def runs(process: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
