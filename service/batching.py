"""The dynamic batcher: requests in, batches out.

Work-conserving: when the backend is free, whatever waits is dispatched, up to `max_batch_size`; an idle backend never
waits for company. Batches therefore form by themselves under load, and a lone request is answered at once. The wait is
bounded too: an image that was not dispatched within `max_wait_s` is refused rather than answered late.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from service.backends import Forward, Outputs
from service.errors import NotReady, Overloaded
from service.images import Pixels


@dataclass(frozen=True)
class Limits:
    """max_batch_size and max_queue_size count images; max_wait_s bounds the time in the queue, in seconds."""

    max_batch_size: int
    max_queue_size: int
    max_wait_s: float


@dataclass(frozen=True)
class BatchReport:
    """What one batch was like: images in it, the longest wait among them and the time inferring, in seconds."""

    size: int
    waited_s: float
    inference_s: float


@dataclass(eq=False)
class _Waiting:
    pixels: Pixels
    answer: asyncio.Future[Outputs]
    since: float


class Batcher:
    """Runs `forward` over batches, one at a time, in `executor`. Belongs to the event loop that first submits."""

    def __init__(
        self, forward: Forward, limits: Limits, executor: Executor, report: Callable[[BatchReport], None]
    ) -> None:
        self._forward = forward
        self._limits = limits
        self._executor = executor
        self._report = report
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._busy = False
        self._scheduled = False

    @property
    def queued(self) -> int:
        """Images waiting for a batch."""
        return self._queued

    async def submit(self, pixels: Pixels) -> Outputs:
        """(K, H, W, 3) uint8 → the outputs for these K images, in order.

        Raises Overloaded when the queue is full or the wait too long.
        """
        size = self._limits.max_batch_size
        if self._queued + len(pixels) > self._limits.max_queue_size:
            raise Overloaded(f"{self._queued} images already wait for this model; retry later.")
        parts = [self._enqueue(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        if len(parts) == 1:
            return await parts[0]
        return Outputs.concatenate(await asyncio.gather(*parts))

    def _enqueue(self, pixels: Pixels) -> asyncio.Future[Outputs]:
        answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(pixels, answer, time.perf_counter()))
        self._queued += len(pixels)
        self._schedule()
        return answer

    def _schedule(self) -> None:
        # Not at once but at the end of this turn of the loop: what arrived in the same turn shares the batch.
        if self._queue and not self._busy and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        batch = self._take()
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            # One hop to the thread and one back for the whole batch.
            running = self._executor.submit(self._infer, batch)
        except RuntimeError:
            self._settle(batch, [NotReady("The service is stopping; retry elsewhere.")] * len(batch))
            return
        self._busy = True
        running.add_done_callback(lambda done: loop.call_soon_threadsafe(self._settle, batch, done.result()))

    def _take(self) -> list[_Waiting]:
        """The images that go next, oldest first. What nobody waits for any more is dropped, what is late refused."""
        batch: list[_Waiting] = []
        room = self._limits.max_batch_size
        overdue = time.perf_counter() - self._limits.max_wait_s
        while self._queue and len(self._queue[0].pixels) <= room:
            waiting = self._queue.popleft()
            self._queued -= len(waiting.pixels)
            if waiting.answer.done():
                continue
            if waiting.since < overdue:
                waiting.answer.set_exception(Overloaded(f"No batch within {self._limits.max_wait_s:g} s; retry later."))
                continue
            batch.append(waiting)
            room -= len(waiting.pixels)
        return batch

    def _infer(self, batch: list[_Waiting]) -> list[Outputs | Exception]:
        """In the executor's thread: one run of the backend, or one each where the whole fails."""
        started = time.perf_counter()
        try:
            outputs = self._forward(np.concatenate([waiting.pixels for waiting in batch]))
            answers: list[Outputs | Exception] = list(outputs.split([len(waiting.pixels) for waiting in batch]))
            self._report(BatchReport(len(outputs), started - batch[0].since, time.perf_counter() - started))
        except Exception as error:
            # One image must not cost its neighbours their answers.
            return [error] if len(batch) == 1 else [self._infer([waiting])[0] for waiting in batch]
        return answers

    def _settle(self, batch: list[_Waiting], answers: list[Outputs | Exception]) -> None:
        self._busy = False
        self._schedule()
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Outputs):
                waiting.answer.set_result(answer)
            else:
                waiting.answer.set_exception(answer)
