"""The thread that uses the store of labels, so that nobody else waits for a disk or a database.

A store that fails is left alone for a moment: whoever comes meanwhile is told so at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import TypeVar

from service.errors import FeedbackUnavailable, NotReady
from service.stores import Store, StoreError, Tallies

logger = logging.getLogger("trueodds")

# Requests under way in one worker.
MOST_WAITING = 64
# How long a store that failed is left alone, and how old what is told of it may be.
RETRY_S, FRESH_S = 1.0, 1.0
# How long clients are kept waiting for a store that hangs, and those who ask for metrics.
LONGEST_S, PATIENCE_S = 10.0, 2.0

T = TypeVar("T")


class Ledger:
    """One store, used by one thread of its own."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._waiting = 0
        # Until then nobody tries; whether that was said.
        self._failed_until = 0.0
        self._failing = False
        self._told: tuple[float, Tallies] | None = None
        # It opens the store, so that who runs the service learns at its start what is wrong with it.
        self._tallies = self._thread.submit(self._read_tallies)

    async def use(self, work: Callable[[Store], T]) -> T:
        """In the thread. Raises FeedbackUnavailable, and what `work` raises but for StoreError."""
        if self._waiting >= MOST_WAITING:
            raise FeedbackUnavailable("Too many labels wait to be recorded; retry later.")
        self._waiting += 1
        try:
            return await self._done(lambda: self._tried(work))
        finally:
            self._waiting -= 1

    async def tallies(self) -> Tallies:
        """Of every model and calibration, a second old at most. Raises FeedbackUnavailable."""
        return await self._done(self._read_tallies)

    def tallies_soon(self) -> Tallies | None:
        """The same from any other thread; None where they cannot be had before long."""
        try:
            # One question at a time, however many ask while the store hangs.
            if self._tallies.done():
                self._tallies = self._submit(self._read_tallies)
            return self._tallies.result(PATIENCE_S)
        except (FeedbackUnavailable, NotReady, Late):
            return None

    def close(self) -> None:
        """When what is under way has ended."""
        self._thread.submit(self._store.close)
        self._thread.shutdown()

    async def _done(self, work: Callable[[], T]) -> T:
        """In the thread, before long. What was begun goes on nevertheless, and who tells it again finds it done."""
        try:
            async with asyncio.timeout(LONGEST_S):
                return await asyncio.wrap_future(self._submit(work))
        except TimeoutError:
            raise _unavailable() from None

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        try:
            return self._thread.submit(work)
        except RuntimeError:
            raise NotReady("The service is stopping; retry elsewhere.") from None

    def _tried(self, work: Callable[[Store], T]) -> T:
        if self._clock() < self._failed_until:
            raise _unavailable()
        try:
            done = work(self._store)
        except StoreError as error:
            self._failed_until = self._clock() + RETRY_S
            if not self._failing:
                logger.warning("labels cannot be recorded, and classification goes on: %s", error)
            self._failing = True
            raise _unavailable() from error
        if self._failing:
            logger.warning("labels are recorded again")
        self._failing = False
        return done

    def _read_tallies(self) -> Tallies:
        now = self._clock()
        if self._told is None or now - self._told[0] >= FRESH_S:
            self._told = now, self._tried(lambda store: store.tallies())
        return self._told[1]


def _unavailable() -> FeedbackUnavailable:
    return FeedbackUnavailable("Labels cannot be recorded or counted just now; retry later.")
