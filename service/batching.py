"""The dynamic batcher: requests in, batches out.

Work-conserving: when the backend is free, whatever waits is dispatched, up to `max_batch_size`; an idle backend never
waits for company. Batches therefore form by themselves under load, and a lone request is answered at once. Nothing
waits for ever: what was not dispatched by its deadline is refused then, what nobody waits for any more is dropped, and
what would not fit is refused at the door. A part of the queue is kept for those who wait for one answer.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from service.errors import Overloaded
from service.images import Pixels

logger = logging.getLogger("trueodds")

Answer = TypeVar("Answer")
Told = TypeVar("Told")
Answer_co = TypeVar("Answer_co", covariant=True)
# Of each batch, while both kinds wait: bulk is slower then, never at a standstill.
BULK_SHARE = 0.25
# How much of the last batch's time an image goes into what the next is expected to take.
SMOOTHING = 0.2
# No answer leaves while the event loop reads, so only batches this short run meanwhile; what others cost around the
# model is little beside it. digits with 640 and 1,024 connections on two cores of an EPYC (Zen 4): 114 → 105 and
# 118 → 103 µs of CPU a request, as with 64.
SHORT_S = 0.005
# What is late is refused so many seconds after its deadline, if no batch is taken before: in company, by one timer.
GRACE_S = 0.005


class Priority(Enum):
    """INTERACTIVE goes first: somebody waits for one answer. BULK has many images and minds less."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True)
class Limits:
    """max_batch_size and max_queue_size count images; max_queue_bytes their pixels; max_wait_s is in seconds.

    interactive_share of the queue, in images and in bytes, is out of bulk's reach.
    """

    max_batch_size: int
    max_queue_size: int
    max_wait_s: float
    max_queue_bytes: int = 256 * 1024 * 1024
    interactive_share: float = 0.25


@dataclass(frozen=True)
class BatchReport:
    """What one batch was like: images in it, the longest wait among them and the time inferring, in seconds."""

    size: int
    waited_s: float
    inference_s: float


class Forward(Protocol[Answer_co]):
    """(N, H, W, 3) uint8 → an answer for each image; `alone`: no other worker needs the cores now."""

    def __call__(self, pixels: Pixels, *, alone: bool) -> Sequence[Answer_co]: ...


class Waiter(Protocol[Answer]):
    """Who waits for a job's answers: an asyncio.Future, or what does as one."""

    def done(self) -> bool:
        """Whether it has them, or waits no longer."""
        ...

    def set_result(self, result: list[Answer | Exception], /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


class Job(Generic[Answer]):
    """The images of one request on their way to their answers, which may come from several batches."""

    __slots__ = ("answers", "deadline", "image_bytes", "pixels", "since", "taken", "unanswered", "waiter")

    def __init__(self, pixels: Pixels, since: float, deadline: float, waiter: Waiter[Answer]) -> None:
        self.pixels = pixels
        self.image_bytes = pixels.nbytes // len(pixels)
        self.since = since
        self.deadline = deadline
        self.waiter = waiter
        # Images given to a batch so far; they go in order.
        self.taken = 0
        self.unanswered = len(pixels)
        self.answers: list[Answer | Exception] = []

    def settle(self, start: int, answers: Sequence[Answer | Exception]) -> None:
        """Answers for the images from `start` on. Batches run one after another, so answers come in order."""
        assert start == len(self.answers)
        self.answers.extend(answers)
        self.unanswered -= len(answers)
        if not self.unanswered:
            self._tell(self.waiter.set_result, self.answers)

    def is_over(self, now: float) -> bool:
        """Whether it is late, or nobody waits for it."""
        return self.deadline < now or self.waiter.done()

    def refuse(self, error: Exception) -> None:
        """There will be no answers."""
        self._tell(self.waiter.set_exception, error)

    def _tell(self, tell: Callable[[Told], None], what: Told) -> None:
        if self.waiter.done():
            return
        try:
            tell(what)
        except Exception:
            # Whoever cannot take an answer must not cost its neighbours theirs.
            logger.exception("an answer could not be given")


class Part(NamedTuple, Generic[Answer]):
    """The images of a job from `start` up to `stop`, which share a batch."""

    job: Job[Answer]
    start: int
    stop: int

    @property
    def pixels(self) -> Pixels:
        return self.job.pixels[self.start : self.stop]


class Queue(Generic[Answer]):
    """What waits for one model. Knows nothing of threads or of time but what it is told."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Ordered dicts rather than deques: a job that nobody waits for any more leaves from the middle.
        self._interactive: OrderedDict[Job[Answer], None] = OrderedDict()
        self._bulk: OrderedDict[Job[Answer], None] = OrderedDict()
        self._bulk_credit = 0.0
        self.images = self.bytes = 0
        # Of these, bulk's.
        self._bulk_images = self._bulk_bytes = 0
        # How long an image takes to leave, in seconds, as far as known.
        self.pace_s = 0.0

    def put(self, job: Job[Answer], priority: Priority) -> None:
        """Raises Overloaded when the queue is full or too slow. An empty one takes whatever a request may hold."""
        size = len(job.pixels)
        size_bytes, bulk = size * job.image_bytes, priority is Priority.BULK
        self.check_pace(bulk, job.deadline - job.since)
        self._check_room(size, size_bytes, bulk)
        self._count(bulk, size, size_bytes)
        (self._bulk if bulk else self._interactive)[job] = None

    def check_pace(self, bulk: bool, within_s: float) -> None:
        """Raises Overloaded where what waits already will take longer, by the pace of late."""
        # Bulk does not hold up the others much. What is late already is told so with the rest that is.
        ahead = self.images if bulk else self.images - self._bulk_images
        if ahead * self.pace_s > within_s > 0:
            raise self._overloaded("No batch would be free in time; retry later.")

    def _check_room(self, size: int, size_bytes: int, bulk: bool) -> None:
        limits = self._limits
        fits = self.images + size <= limits.max_queue_size and self.bytes + size_bytes <= limits.max_queue_bytes
        if self.images and (bulk or not fits) and not self._fits_share(size, size_bytes, bulk, fits):
            raise self._overloaded(f"{self.images} images already wait for this model; retry later.")

    def _fits_share(self, size: int, size_bytes: int, bulk: bool, fits: bool) -> bool:
        """Bulk stays within its share; the others have theirs, even beside a request that fills the queue."""
        limits = self._limits
        if bulk:
            images, octets, share = self._bulk_images, self._bulk_bytes, 1 - limits.interactive_share
        else:
            images, octets = self.images - self._bulk_images, self.bytes - self._bulk_bytes
            share = limits.interactive_share
        within = (
            images + size <= share * limits.max_queue_size and octets + size_bytes <= share * limits.max_queue_bytes
        )
        return within and (fits or not bulk)

    def _count(self, bulk: bool, images: int, octets: int) -> None:
        """So many more images and bytes wait, or fewer."""
        self.images += images
        self.bytes += octets
        if bulk:
            self._bulk_images += images
            self._bulk_bytes += octets

    def _overloaded(self, detail: str) -> Overloaded:
        """Retry when what waits now has gone: by the pace of late, and by max_wait_s at the latest."""
        seconds = min(self.images * self.pace_s, self._limits.max_wait_s)
        return Overloaded(detail, max(1, math.ceil(seconds)))

    def forget(self, job: Job[Answer]) -> None:
        """Nobody waits for this job any more: what is left of it counts no longer and will not be taken."""
        for jobs in (self._interactive, self._bulk):
            if job in jobs:
                del jobs[job]
                left = len(job.pixels) - job.taken
                self._count(jobs is self._bulk, -left, -left * job.image_bytes)

    def refuse_late(self, now: float) -> float:
        """Refuse what is late and drop what nobody waits for; returns the earliest deadline of what is left."""
        for job in [job for jobs in (self._interactive, self._bulk) for job in jobs if job.is_over(now)]:
            self._refuse(job)
        return min((job.deadline for jobs in (self._interactive, self._bulk) for job in jobs), default=math.inf)

    def _refuse(self, job: Job[Answer]) -> None:
        self.forget(job)
        job.refuse(self._overloaded("No batch was free in time; retry later."))

    def take(self, now: float, takes_s: float = 0.0) -> list[Part[Answer]]:
        """The batch that goes next, oldest first within a priority. What is late is refused.

        So is what will be, before the batch ends in `takes_s`, unless that is said of all that waits: what a batch
        takes is learned from those that run.
        """
        batch: list[Part[Answer]] = []
        ends = now + takes_s
        newest = [next(reversed(jobs)) for jobs in (self._interactive, self._bulk) if jobs]
        if not any(job.deadline >= ends for job in newest):
            ends = now
        reserved = self._reserved_for_bulk()
        room = self._fill(batch, self._interactive, self._limits.max_batch_size - reserved, ends)
        room = self._fill(batch, self._bulk, room + reserved, ends)
        self._fill(batch, self._interactive, room, ends)
        return batch

    def _reserved_for_bulk(self) -> int:
        if not self._bulk or not self._interactive:
            self._bulk_credit = 0.0
            return 0
        # A share of less than an image adds up over several batches.
        self._bulk_credit += BULK_SHARE * self._limits.max_batch_size
        whole = math.floor(self._bulk_credit)
        self._bulk_credit -= whole
        return whole

    def _fill(self, batch: list[Part[Answer]], jobs: OrderedDict[Job[Answer], None], room: int, ends: float) -> int:
        """Move images from `jobs` to `batch`, which ends at that time; returns the room that is left."""
        while jobs and room:
            job = next(iter(jobs))
            if job.is_over(ends):
                self._refuse(job)
                continue
            start = job.taken
            job.taken = stop = min(len(job.pixels), start + room)
            part = Part(job, start, stop)
            batch.append(part)
            room -= stop - start
            self._count(jobs is self._bulk, start - stop, (start - stop) * job.image_bytes)
            if stop == len(job.pixels):
                del jobs[job]
        return room


class Turns(Protocol):
    """Gives batchers that share a device their turns."""

    def ask(self, batcher: "Batcher[Answer]", images: int) -> None:
        """So many more images wait in this batcher's queue."""
        ...

    def done(self, images: int) -> None:
        """So many images wait no longer, and are in no batch."""
        ...

    def run_full(self, batcher: "Batcher[Answer]") -> None:
        """A full batch waits in this batcher's queue: it may run before this returns."""
        ...


class Batcher(Generic[Answer]):
    """Runs one model's `forward` over batches whenever `turns` gives it a turn."""

    def __init__(
        self,
        forward: Forward[Answer],
        limits: Limits,
        turns: Turns,
        report: Callable[[BatchReport], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._forward = forward
        self._limits = limits
        self._turns = turns
        self._report = report
        self._clock = clock
        self._queue: Queue[Answer] = Queue(limits)
        # What the device has spent on this model, in seconds; `turns` keeps it in step with the others'.
        self.used_s = 0.0
        # Not known before the first batch.
        self._image_s = math.inf
        # When the last batch ended.
        self._ended = -math.inf
        # One timer for all that waits: set to the earliest deadline, or to one that was.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def queued(self) -> int:
        """Images waiting for a batch."""
        return self._queue.images

    def check_pace(self, within_s: float) -> None:
        """Raises Overloaded where no batch would take a lone image in that time: none need be decoded to learn that."""
        self._queue.check_pace(False, min(within_s, self._limits.max_wait_s))

    def after(self, seconds: float) -> float:
        """A time so many seconds from now, on the batcher's clock, as `deadline` is meant."""
        return self._clock() + seconds

    async def submit(
        self, pixels: Pixels, priority: Priority = Priority.INTERACTIVE, deadline: float = math.inf
    ) -> list[Answer | Exception]:
        """(K, H, W, 3) uint8 → an answer for each image, in order, or the exception that it alone caused.

        Raises Overloaded when the queue is full or the wait too long; `deadline`, on the batcher's clock, may shorten
        it.
        """
        if not len(pixels):
            return []
        future: asyncio.Future[list[Answer | Exception]] = asyncio.get_running_loop().create_future()
        job = self.enqueue(pixels, future, priority, deadline)
        try:
            return await future
        finally:
            self.leave(job)

    def enqueue(
        self,
        pixels: Pixels,
        waiter: Waiter[Answer],
        priority: Priority = Priority.INTERACTIVE,
        deadline: float = math.inf,
    ) -> Job[Answer]:
        """As `submit`, for at least one image, without waiting: `waiter` is told. Raises Overloaded when it is full."""
        now = self._clock()
        job = Job(pixels, now, min(deadline, now + self._limits.max_wait_s), waiter)
        self._queue.put(job, priority)
        if job.deadline < self._alarm_at:
            self._set_alarm(job.deadline, now)
        self._turns.ask(self, len(pixels))
        return job

    def run_full(self) -> None:
        """Run a short batch now if one is full, rather than when the event loop has read whatever else has come.

        With hundreds of connections that is so much that the first of it has left the processor's caches by then. Any
        who waits may be answered before this returns.
        """
        most = self._limits.max_batch_size
        if self._queue.images >= most and self._expected_s(most) <= SHORT_S:
            self._turns.run_full(self)

    def _set_alarm(self, deadline: float, now: float) -> None:
        if self._alarm:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = asyncio.get_running_loop().call_later(deadline - now + GRACE_S, self._refuse_late)

    def _refuse_late(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        before, now = self._queue.images, self._clock()
        earliest = self._queue.refuse_late(now)
        self._turns.done(before - self._queue.images)
        if earliest < math.inf:
            self._set_alarm(earliest, now)

    def leave(self, job: Job[Answer]) -> None:
        """Nobody waits for this job any more."""
        before = self._queue.images
        self._queue.forget(job)
        self._turns.done(before - self._queue.images)

    def take(self) -> list[Part[Answer]]:
        """The next batch; empty where nothing waits any more."""
        before = self._queue.images
        batch = self._queue.take(self._clock(), self._expected_s(min(before, self._limits.max_batch_size)))
        self._turns.done(before - self._queue.images - size_of(batch))
        return batch

    def expected_s(self, batch: list[Part[Answer]]) -> float:
        """How long this batch will probably take, in seconds; infinite where nothing is known yet."""
        return self._image_s * size_of(batch)

    def _expected_s(self, images: int) -> float:
        return self._image_s * images if math.isfinite(self._image_s) else 0.0

    def run(self, batch: list[Part[Answer]], alone: bool) -> "Ran[Answer]":
        """Run the backend once over the batch; again over its parts where that fails. In any thread."""
        started = self._clock()
        pixels = batch[0].pixels if len(batch) == 1 else np.concatenate([part.pixels for part in batch])
        answers = self._answers(pixels, alone)
        return Ran(answers, started, self._clock())

    def settle(self, batch: list[Part[Answer]], ran: "Ran[Answer]") -> None:
        """Give the answers to those who wait for them. In the event loop's thread."""
        size, seconds = len(ran.answers), ran.ended - ran.started
        self.used_s += seconds
        known = seconds / size if math.isinf(self._image_s) else self._image_s
        self._image_s = known + SMOOTHING * (seconds / size - known)
        since = min(part.job.since for part in batch)
        waited = ran.started - since
        self._note_pace((ran.ended - max(since, self._ended)) / size)
        self._ended = ran.ended
        self._give(batch, ran.answers)
        try:
            self._report(BatchReport(size, waited, seconds))
        except Exception:
            # Whoever counts batches must not hold up the next.
            logger.exception("a batch could not be reported")

    def _note_pace(self, image_s: float) -> None:
        """So long each image of a batch took to leave, other models' turns included."""
        known = self._queue.pace_s or image_s
        self._queue.pace_s = known + SMOOTHING * (image_s - known)

    def refuse(self, batch: list[Part[Answer]], error: Exception) -> None:
        """Tell those who wait for a batch that it cannot run."""
        self._give(batch, [error] * size_of(batch))

    def _give(self, batch: list[Part[Answer]], answers: Sequence[Answer | Exception]) -> None:
        at = 0
        for part in batch:
            length = part.stop - part.start
            part.job.settle(part.start, answers[at : at + length])
            at += length
        self._turns.done(at)

    def _answers(self, pixels: Pixels, alone: bool) -> Sequence[Answer | Exception]:
        try:
            answers = self._forward(pixels, alone=alone)
            if len(answers) != len(pixels):
                raise RuntimeError(f"the backend gave {len(answers)} answers for {len(pixels)} images")
        except Exception as error:
            if len(pixels) == 1:
                return [error]
            # One image must not cost its neighbours their answers; by halves, as most of them are sound.
            half = len(pixels) // 2
            return [*self._answers(pixels[:half], alone), *self._answers(pixels[half:], alone)]
        return answers


@dataclass(frozen=True, slots=True)
class Ran(Generic[Answer]):
    """A batch's answers and when it ran, on the batcher's clock."""

    answers: Sequence[Answer | Exception]
    started: float
    ended: float


def size_of(batch: Sequence[Part[Answer]]) -> int:
    """The images in a batch."""
    return sum(part.stop - part.start for part in batch)
