"""Whose batch runs next: the models of a worker share its core or its GPU, one batch at a time.

Turns go to the model that has used the device least, so that a slow model's queue does not starve a fast one's
(start-time fair queuing, Goyal et al. 1996, with measured times). One batch at a time because two at once on one core
take longer for both and finish neither sooner.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from service.batching import Batcher, Part, Ran, size_of
from service.board import Board
from service.errors import NotReady
from service.pulse import Pulse

# A batch expected to take no longer runs on the event loop itself, if the worker has one core: nothing could run beside
# it, and each change between a thread that infers and a loop that decodes leaves both with cold caches. Two cores of
# an EPYC (Zen 4), 0.93 ms an image, 64 connections: 1.09 ms of CPU a request on the loop, 1.17 by way of a thread.
SECONDS_ON_LOOP = 0.05
# No answer leaves while the event loop reads, so it reads and runs full batches for no longer than this.
READING_S = 0.01
# A batch in a thread may take so many times as long as expected, or so long an image where nothing is known yet.
MUCH_LONGER, UNKNOWN_IMAGE_S = 10, 0.25

AnyBatcher = Batcher[Any]
Batch = list[Part[Any]]


class Turns:
    """Gives turns on one device to the batchers of one event loop."""

    def __init__(self, executor: Executor, board: Board, on_loop: bool, pulse: Pulse | None = None) -> None:
        """`on_loop`: batches run on the event loop, as they should where it has one core and not where it has a GPU."""
        self._executor = executor
        self._board = board
        self._pulse = pulse or Pulse(board)
        self._seconds_on_loop = SECONDS_ON_LOOP if on_loop else 0.0
        self._waiting: set[AnyBatcher] = set()
        # What the model whose turn came last had used by then.
        self._now_s = 0.0
        # The most that any model has used.
        self._most_s = 0.0
        self._busy = False
        self._scheduled = False
        # Since the last turn of the event loop.
        self._asked = self._answered = False
        # When the first full batch came in this turn of the event loop, by time.perf_counter; 0 for none.
        self._reading_since = 0.0

    def ask(self, batcher: AnyBatcher, images: int) -> None:
        """So many more images wait in this batcher's queue."""
        self._board.add_images(images)
        if not self._waiting:
            # Nobody was kept waiting by what others used: all are equal again.
            self._now_s = self._most_s
        if batcher not in self._waiting:
            # What a model did not use while nothing waited for it is not saved up.
            batcher.used_s = max(batcher.used_s, self._now_s)
            self._waiting.add(batcher)
        self._asked = True
        self._schedule()

    def done(self, images: int) -> None:
        """So many images wait no longer, and are in no batch."""
        if images:
            self._board.add_images(-images)

    def run_full(self, batcher: AnyBatcher) -> None:
        """Give this batcher, in which a full batch waits, its turn now: if it is its turn, and runs on the loop."""
        now = time.perf_counter()
        self._reading_since = self._reading_since or now
        in_time = now - self._reading_since < READING_S
        if in_time and self._seconds_on_loop and not self._busy and batcher is self._first():
            self._run_next(batcher)

    def _schedule(self) -> None:
        if self._waiting and not self._busy and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._scheduled, self._reading_since = False, 0.0
        if not self._waiting or self._busy:
            # What waited then has had its turn by `run_full`.
            return
        batcher = self._first()
        if self._answered or (self._asked and batcher.queued < batcher.limits.max_batch_size):
            # Answers are sent before the next batch holds up the loop. And as long as each turn of the loop brings
            # something, it shares the batch.
            self._answered = self._asked = False
            self._schedule()
            return
        self._run_next(batcher)
        self._schedule()

    def _first(self) -> AnyBatcher:
        """Of those that wait, the one that has used the device least."""
        return min(self._waiting, key=lambda waiting: waiting.used_s)

    def _run_next(self, batcher: AnyBatcher) -> None:
        self._now_s = batcher.used_s
        batch = batcher.take()
        if not batcher.queued:
            self._waiting.discard(batcher)
        if batch:
            self._run(batcher, batch)

    def _run(self, batcher: AnyBatcher, batch: Batch) -> None:
        alone = self._board.others_idle
        if batcher.expected_s(batch) <= self._seconds_on_loop:
            self._settle(batcher, batch, partial(batcher.run, batch, alone))
            self._answered = True
            return
        loop = asyncio.get_running_loop()
        try:
            running = self._executor.submit(self._watched, batcher, batch, alone)
        except RuntimeError:
            batcher.refuse(batch, NotReady("The service is stopping; retry elsewhere."))
            return
        self._busy = True
        running.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ran, batcher, batch, done.result))

    def _watched(self, batcher: AnyBatcher, batch: Batch, alone: bool) -> Ran[Any]:
        """In a thread."""
        expected_s = batcher.expected_s(batch)
        may_take_s = UNKNOWN_IMAGE_S * size_of(batch) if math.isinf(expected_s) else MUCH_LONGER * expected_s
        with self._pulse.watching("a batch", may_take_s):
            return batcher.run(batch, alone)

    def _ran(self, batcher: AnyBatcher, batch: Batch, result: Callable[[], Ran[Any]]) -> None:
        self._busy = False
        # The next batch starts before the answers of this one are written.
        self._schedule()
        self._settle(batcher, batch, result)

    def _settle(self, batcher: AnyBatcher, batch: Batch, result: Callable[[], Ran[Any]]) -> None:
        try:
            ran = result()
        except Exception as error:
            # It could not even be put together. Whoever waits for it must know, and the next must have its turn.
            batcher.refuse(batch, error)
        else:
            batcher.settle(batch, ran)
            self._most_s = max(self._most_s, batcher.used_s)
