"""service.batching: nothing lost, nothing answered twice, nobody waiting without need or without end.

Time is virtual here: it passes only when everybody waits, so that hours take a moment and each run is alike.
"""

import asyncio
import functools
import math
import random
import selectors
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.batching import BULK_SHARE, GRACE_S, Batcher, BatchReport, Job, Limits, Priority, Queue
from service.board import Board
from service.errors import NotReady, Overloaded
from service.images import Pixels
from service.turns import Turns

P = ParamSpec("P")
T = TypeVar("T")
Answered = list[int | Exception]

ROOMY = Limits(max_batch_size=4, max_queue_size=1000, max_wait_s=60)
INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK
SOON_S = 1e-6
IMAGE_BYTES = 3


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock leaps to what is due next. Where nothing ever will be, it raises instead of hanging."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(LeapingSelector(self))

    def time(self) -> float:
        return self.now


class LeapingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns_of_this_instant = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits and nothing is due: somebody was forgotten"
        self._turns_of_this_instant = 0 if timeout else self._turns_of_this_instant + 1
        assert self._turns_of_this_instant < 20_000, "the loop turns and time stands still"
        self._loop.now += timeout
        return super().select(0)


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with closing(VirtualLoop()) as loop:
            loop.run_until_complete(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


class VirtualThread(Executor):
    """Runs a task at once, and has its result when the time that the task spent has passed for everybody else too."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._stopped = False
        self.ran = 0
        self._running = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if self._stopped:
            raise RuntimeError("cannot schedule new futures after shutdown")
        assert not self._running, "two batches at once"
        future: Future[T] = Future()
        started = self._loop.now
        try:
            end = functools.partial(future.set_result, fn(*args, **kwargs))
        except BaseException as error:
            end = functools.partial(future.set_exception, error)
        took, self._loop.now = self._loop.now - started, started
        self._running += 1
        self._loop.call_later(took, self._end, end)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._stopped = True

    def _end(self, end: Callable[[], None]) -> None:
        self._running -= 1
        self.ran += 1
        end()


def images(*numbers: int) -> Pixels:
    """(K, 1, 1, 3): pictures that each carry a number below 2**24."""
    wide = np.array(numbers, np.uint32)
    return np.stack([wide >> 16, wide >> 8 & 255, wide & 255], 1).astype(np.uint8)[:, None, None]


def numbers_in(pixels: Pixels) -> list[int]:
    numbers: list[int] = (pixels[:, 0, 0].astype(int) @ [1 << 16, 1 << 8, 1]).tolist()
    return numbers


@dataclass
class Network:
    """Answers each image with the number in its pixels, in its own time; raises at a batch that holds a broken one."""

    loop: VirtualLoop
    image_s: float = 0.25
    batch_s: float = 0.0
    broken: Collection[int] = ()
    batches: list[list[int]] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    alone: list[bool] = field(default_factory=list)

    def forward(self, pixels: Pixels, *, alone: bool) -> list[int]:
        numbers = numbers_in(pixels)
        started = self.loop.now
        self.loop.now += self.batch_s + self.image_s * len(numbers)
        self.batches.append(numbers)
        self.times.append((started, self.loop.now))
        self.alone.append(alone)
        if not set(numbers).isdisjoint(self.broken):
            raise ValueError(f"cannot infer {sorted(set(numbers) & set(self.broken))}")
        return numbers


class Model:
    """A network behind a batcher, with what the batcher reported."""

    def __init__(self, device: "Device", limits: Limits, network: Network) -> None:
        self.network = network
        self.reports: list[BatchReport] = []
        self.batcher: Batcher[int] = Batcher(network.forward, limits, device.turns, self.reports.append, now)

    def submit(
        self, *numbers: int, priority: Priority = INTERACTIVE, deadline: float = math.inf
    ) -> asyncio.Task[Answered]:
        return asyncio.ensure_future(self.batcher.submit(images(*numbers), priority, deadline))


class Device:
    """What the models of one worker share. Everything runs in its (virtual) thread unless `on_loop`."""

    def __init__(self, *, on_loop: bool = False, board: Board | None = None) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop = loop
        self.thread = VirtualThread(loop)
        self.turns = Turns(self.thread, board or Board(), on_loop)

    def model(
        self, limits: Limits = ROOMY, image_s: float = 0.25, batch_s: float = 0.0, broken: Collection[int] = ()
    ) -> Model:
        return Model(self, limits, Network(self._loop, image_s, batch_s, broken))


async def all_of(*requests: Awaitable[Answered]) -> list[Answered]:
    return list(await asyncio.gather(*requests))


async def outcome(task: asyncio.Task[Answered]) -> Answered | Exception:
    """What a request came to; TimeoutError where its client left before."""
    try:
        return await task
    except asyncio.CancelledError:
        return TimeoutError()
    except Exception as error:
        return error


# The queue alone, which is told the time.


class Offer:
    """A job and which of its images were taken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, numbers: list[int], at: float, patience_s: float) -> None:
        self.numbers = numbers
        self.taken: list[int] = []
        self.future: asyncio.Future[Answered] = loop.create_future()
        self.job: Job[int] = Job(images(*numbers), at, at + patience_s, self.future)

    @property
    def left(self) -> list[int]:
        return self.numbers[len(self.taken) :]


class QueueMachine(RuleBasedStateMachine):
    """A queue and a plain model of it: a list of offers for each priority."""

    @initialize(
        batch=st.integers(1, 5),
        images=st.integers(1, 12),
        images_of_bytes=st.integers(1, 12),
        share=st.sampled_from([0, 0.25, 0.5, 1]),
    )
    def open(self, batch: int, images: int, images_of_bytes: int, share: float) -> None:
        self.limits = Limits(batch, images, math.inf, images_of_bytes * IMAGE_BYTES, share)
        self.queue: Queue[int] = Queue(self.limits)
        self.loop = VirtualLoop()
        self.now = 0
        self.offers: list[Offer] = []
        self.waiting: dict[Priority, list[Offer]] = {priority: [] for priority in Priority}

    def left(self, priority: Priority) -> list[int]:
        """The numbers of the images that wait and are not late, in order."""
        return [number for offer in self.waiting[priority] for number in offer.left if offer.job.deadline >= self.now]

    @rule(size=st.integers(1, 6), priority=st.sampled_from(Priority), patience=st.integers(0, 5))
    def put(self, size: int, priority: Priority, patience: int) -> None:
        start = sum(len(offer.numbers) for offer in self.offers)
        offer = Offer(self.loop, list(range(start, start + size)), self.now, patience)
        room = min(self.limits.max_queue_size, self.limits.max_queue_bytes // IMAGE_BYTES)
        alike = size + sum(len(other.left) for other in self.waiting[priority])
        fits = self.queue.images + size <= room
        if priority is BULK:
            welcome = fits and alike <= (1 - self.limits.interactive_share) * room
        else:
            welcome = fits or alike <= self.limits.interactive_share * room
        if self.queue.images and not welcome:
            with pytest.raises(Overloaded):
                self.queue.put(offer.job, priority)
            return
        self.queue.put(offer.job, priority)
        self.offers.append(offer)
        self.waiting[priority].append(offer)

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        offer = data.draw(st.sampled_from(self.offers))
        offer.future.cancel()
        self.queue.forget(offer.job)
        for waiting in self.waiting.values():
            waiting[:] = [other for other in waiting if other is not offer]

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def refuse_late(self) -> None:
        earliest = self.queue.refuse_late(self.now)
        self._let_go()
        left = [offer.job.deadline for waiting in self.waiting.values() for offer in waiting]
        assert earliest == min(left, default=math.inf) >= self.now

    @rule()
    def take(self) -> None:
        in_time = {priority: self.left(priority) for priority in Priority}
        owners = {offer.job: (offer, priority) for priority in Priority for offer in self.waiting[priority]}
        taken: dict[Priority, list[int]] = {priority: [] for priority in Priority}
        parts = self.queue.take(self.now)
        for part in parts:
            offer, priority = owners[part.job]
            assert (part.start, numbers_in(part.pixels)) == (len(offer.taken), offer.numbers[part.start : part.stop])
            offer.taken += numbers_in(part.pixels)
            taken[priority] += numbers_in(part.pixels)
        for priority in Priority:
            # Oldest first, nobody late, nobody passed over.
            assert taken[priority] == in_time[priority][: len(taken[priority])]
        size = sum(map(len, taken.values()))
        assert size <= self.limits.max_batch_size
        assert size == self.limits.max_batch_size or not (self.left(INTERACTIVE) or self.left(BULK))
        if self.left(INTERACTIVE):
            assert len(taken[BULK]) <= math.ceil(BULK_SHARE * self.limits.max_batch_size)
        self._let_go()
        for part in parts:
            part.job.settle(part.start, numbers_in(part.pixels))

    def _let_go(self) -> None:
        """Of what is taken whole and of what was refused."""
        for waiting in self.waiting.values():
            for offer in waiting[:]:
                if offer.future.done():
                    assert isinstance(offer.future.exception(), Overloaded)
                    assert offer.job.deadline < self.now
                if offer.future.done() or not offer.left:
                    waiting.remove(offer)

    @invariant()
    def counts_what_waits(self) -> None:
        count = sum(len(offer.left) for waiting in self.waiting.values() for offer in waiting)
        assert (self.queue.images, self.queue.bytes) == (count, count * IMAGE_BYTES)

    def teardown(self) -> None:
        for _ in range(1 + sum(len(offer.numbers) for offer in self.offers)):
            self.take()
        for offer in self.offers:
            future = offer.future
            refused = future.cancelled() or future.exception()
            assert refused or future.result() == offer.taken == offer.numbers
        self.loop.close()


QueueMachine.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestQueue = QueueMachine.TestCase


def filled(limits: Limits, loop: asyncio.AbstractEventLoop, **numbers: Iterable[int]) -> Queue[int]:
    """A queue of single images, by the names of priorities."""
    queue: Queue[int] = Queue(limits)
    for priority, offered in numbers.items():
        for number in offered:
            queue.put(Offer(loop, [number], 0, math.inf).job, Priority[priority.upper()])
    return queue


def taken(queue: Queue[int]) -> list[int]:
    return [number for part in queue.take(0) for number in numbers_in(part.pixels)]


@simulated
async def test_interactive_images_overtake_bulk() -> None:
    """Interactive images go first though bulk came before; a quarter of the batch is bulk's."""
    queue = filled(Limits(8, 1000, 60), asyncio.get_running_loop(), bulk=range(100, 120), interactive=range(20))
    assert taken(queue) == [*range(6), 100, 101]
    assert taken(queue) == [*range(6, 12), 102, 103]


@pytest.mark.parametrize("max_batch_size", [1, 2, 3, 4, 7, 16])
@simulated
async def test_bulk_gets_its_share_of_any_batch_size(max_batch_size: int) -> None:
    """While both wait, BULK_SHARE of the images are bulk's to within one image, at any time: it never starves."""
    backlog = 50 * max_batch_size
    loop = asyncio.get_running_loop()
    queue = filled(
        Limits(max_batch_size, 2 * backlog, 60), loop, bulk=range(backlog, 2 * backlog), interactive=range(backlog)
    )
    bulk = 0
    for batches in range(1, 41):
        batch = taken(queue)
        assert len(batch) == max_batch_size
        bulk += sum(number >= backlog for number in batch)
        assert -1 < bulk - BULK_SHARE * max_batch_size * batches <= 0


@simulated
async def test_no_share_is_saved_up_while_only_one_priority_waits() -> None:
    """Bulk that ran alone lets each interactive image pass at once; bulk that has just come is owed nothing."""
    loop, limits = asyncio.get_running_loop(), Limits(1, 1000, 60)
    queue = filled(limits, loop, bulk=range(100, 130))
    for number in range(10):
        assert taken(queue)[0] >= 100
        queue.put(Offer(loop, [number], 0, math.inf).job, INTERACTIVE)
        assert taken(queue) == [number]
    queue = filled(limits, loop, interactive=range(20))
    assert [taken(queue) for _ in range(3)] == [[0], [1], [2]]
    queue.put(Offer(loop, [100], 0, math.inf).job, BULK)
    assert [taken(queue) for _ in range(4)] == [[3], [4], [5], [100]]


@simulated
async def test_either_priority_takes_what_the_other_leaves() -> None:
    """A share that is not needed is not kept free, whoever leaves it."""
    loop, limits = asyncio.get_running_loop(), Limits(8, 1000, 60)
    assert taken(filled(limits, loop, bulk=range(20))) == [*range(8)]
    assert taken(filled(limits, loop, interactive=range(20))) == [*range(8)]
    assert taken(filled(limits, loop, interactive=range(3), bulk=range(10, 20))) == [*range(3), *range(10, 15)]
    assert taken(filled(limits, loop, interactive=range(20), bulk=[30])) == [*range(6), 30, 6]


# The batcher, on a device of its own.


@dataclass(frozen=True)
class Visit:
    """A request to come: when, of how many images, and after how long its deadline passes or its client leaves."""

    at: float
    size: int
    priority: Priority = INTERACTIVE
    patience_s: float = math.inf
    stays_s: float = math.inf


@dataclass(frozen=True)
class Visited:
    visit: Visit
    numbers: list[int]
    result: Answered | Exception
    ended: float


class Simulation:
    """Clients that visit a model."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.most_queued = 0

    async def of(self, visits: Sequence[Visit]) -> list[Visited]:
        ends = np.cumsum([visit.size for visit in visits]).tolist()
        each = (self._visit(visit, list(range(end - visit.size, end))) for visit, end in zip(visits, ends, strict=True))
        visited = await asyncio.gather(*each)
        # A batch may still run for clients that have left.
        await asyncio.sleep(60)
        return visited

    async def _visit(self, visit: Visit, numbers: list[int]) -> Visited:
        await asyncio.sleep(visit.at)
        task = self.model.submit(*numbers, priority=visit.priority, deadline=now() + visit.patience_s)
        if visit.stays_s < math.inf:
            asyncio.get_running_loop().call_later(visit.stays_s, task.cancel)
        await asyncio.sleep(0)
        self.most_queued = max(self.most_queued, self.model.batcher.queued)
        return Visited(visit, numbers, await outcome(task), now())

    def check(self, visited: Sequence[Visited]) -> None:
        """What holds whatever happens."""
        batches, times = self.model.network.batches, self.model.network.times
        dispatched = {n: start for batch, (start, _) in zip(batches, times, strict=True) for n in batch}
        sizes = [len(batch) for batch in batches]
        assert len(dispatched) == sum(sizes), "an image was inferred twice"
        assert max(sizes, default=1) <= self.limits.max_batch_size
        # An empty queue takes any request, and what bulk may not take is there beside it.
        room, kept = self.limits.max_queue_size, self.limits.interactive_share * self.limits.max_queue_size
        assert self.most_queued <= kept + max(room, *(each.visit.size for each in visited), 0)
        assert self.model.batcher.queued == 0
        for each in visited:
            self._check_result(each, [dispatched[number] for number in each.numbers if number in dispatched])
        self._check_never_idle({n: each.visit.at for each in visited for n in each.numbers if n in dispatched})
        self._check_reports({n: each.visit.at for each in visited for n in each.numbers})

    def _check_result(self, each: Visited, starts: list[float]) -> None:
        visit = each.visit
        deadline = visit.at + min(visit.patience_s, self.limits.max_wait_s)
        assert starts == sorted(starts), "the images of a request went out of order"
        assert all(start <= min(deadline, visit.at + visit.stays_s) + SOON_S for start in starts)
        match each.result:
            case list():
                assert each.result == each.numbers
                assert len(starts) == visit.size
            case TimeoutError():
                assert each.ended == pytest.approx(visit.at + visit.stays_s)
            case Overloaded():
                # At the door, when it was late, or when a full batch would have ended too late.
                would_end = each.ended + self.model.network.image_s * self.limits.max_batch_size
                assert would_end > deadline or (not starts and each.ended == pytest.approx(visit.at))
            case _:
                pytest.fail(f"unexpected {each.result!r}")

    def _check_never_idle(self, arrived: dict[int, float]) -> None:
        """No image that was inferred after a pause of the device had been there before the pause ended."""
        network, earliest = self.model.network, math.inf
        idle_until = [0.0, *(end for _, end in network.times)]
        for batch, (start, _), free in reversed(list(zip(network.batches, network.times, idle_until, strict=False))):
            earliest = min(earliest, *(arrived[number] for number in batch))
            assert start <= free + SOON_S or earliest >= start - SOON_S, "the device idled while an image waited"

    def _check_reports(self, arrived: dict[int, float]) -> None:
        network = self.model.network
        assert len(self.model.reports) == len(network.batches)
        for report, batch, (start, end) in zip(self.model.reports, network.batches, network.times, strict=True):
            waited = start - min(arrived[number] for number in batch)
            assert report.size == len(batch)
            assert report.waited_s == pytest.approx(waited, abs=SOON_S)
            assert report.inference_s == pytest.approx(end - start, abs=SOON_S)


# Eighths of a second are exact, so that many things happen at the same instant.
EIGHTHS = st.integers(0, 24).map(lambda eighths: eighths / 8)
VISITS = st.lists(
    st.builds(
        Visit,
        at=EIGHTHS,
        size=st.integers(1, 7),
        priority=st.sampled_from(Priority),
        patience_s=st.one_of(st.just(math.inf), EIGHTHS),
        stays_s=st.one_of(st.just(math.inf), EIGHTHS),
    ),
    max_size=25,
)


@pytest.mark.slow
@given(
    visits=VISITS,
    limits=st.builds(Limits, st.integers(1, 5), st.integers(1, 20), st.sampled_from([0.5, 2, 60])),
    image_s=st.sampled_from([0.0625, 0.125, 0.5]),
    on_loop=st.booleans(),
)
@settings(deadline=None, max_examples=300)
@simulated
async def test_whatever_comes_and_leaves_is_answered_once_in_order_and_in_bounds(
    visits: list[Visit], limits: Limits, image_s: float, on_loop: bool
) -> None:
    """Nothing lost, answered twice, mixed up, late or inferred for nobody; bounds kept; no idling; reports right."""
    simulation = Simulation(Device(on_loop=on_loop).model(limits, image_s), limits)
    simulation.check(await simulation.of(visits))


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.9, 3.0])
@simulated
async def test_thousands_of_requests_below_at_and_above_capacity(load: float) -> None:
    """The same over three thousand random requests: below its capacity a device refuses nobody, above it works on."""
    chance = random.Random(0)
    limits = Limits(max_batch_size=16, max_queue_size=100, max_wait_s=1.0)
    sizes = [chance.choice([1, 1, 1, 1, 1, 2, 5, 40]) for _ in range(3000)]
    image_s = 0.01
    gap = sum(sizes) / len(sizes) * image_s / load
    at = 0.0
    visits = []
    for size in sizes:
        at += chance.expovariate(1 / gap)
        stays_s = chance.uniform(0, 0.5) if chance.random() < 0.2 else math.inf
        visits.append(Visit(at, size, INTERACTIVE if size == 1 else BULK, chance.choice([0.8, math.inf]), stays_s))
    simulation = Simulation(Device().model(limits, image_s), limits)
    visited = await simulation.of(visits)
    simulation.check(visited)
    refused = sum(isinstance(each.result, Overloaded) for each in visited)
    if load < 0.5:
        assert refused < 60
    if load > 1:
        assert refused > 300
        busy = sum(end - start for start, end in simulation.model.network.times)
        assert busy > 0.95 * simulation.model.network.times[-1][1]


@pytest.mark.slow
def test_a_real_thread_answers_five_hundred_concurrent_requests_correctly() -> None:
    """With a thread in between, every request still gets its own answer and every image runs once."""
    batches: list[list[int]] = []

    def forward(pixels: Pixels, *, alone: bool) -> list[int]:
        time.sleep(0.0005)
        batches.append(numbers_in(pixels))
        return batches[-1]

    async def scenario(executor: Executor) -> None:
        turns = Turns(executor, Board(), on_loop=False)
        batcher: Batcher[int] = Batcher(forward, Limits(16, 60_000, 60), turns, lambda report: None)

        async def client(numbers: list[int]) -> None:
            await asyncio.sleep(numbers[0] % 50 / 5000)
            assert await batcher.submit(images(*numbers)) == numbers

        await asyncio.wait_for(asyncio.gather(*map(client, requests)), 20)

    sizes = np.random.default_rng(0).integers(1, 40, 500)
    ends = np.cumsum(sizes).tolist()
    requests = [list(range(end - size, end)) for size, end in zip(sizes.tolist(), ends, strict=True)]
    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
    assert sorted(number for batch in batches for number in batch) == list(range(ends[-1]))
    assert max(map(len, batches)) == 16


@simulated
async def test_a_lone_request_is_dispatched_at_once() -> None:
    """An idle backend gets a lone image the moment it comes: no time passes but that of the inference."""
    model = Device().model()
    await asyncio.sleep(5)
    assert await model.submit(7) == [7]
    assert model.network.times == [(5, 5.25)]
    assert now() == 5.25


@simulated
async def test_requests_of_one_turn_share_a_batch() -> None:
    """What arrives in the same turn of the loop goes together, though the backend is idle."""
    model = Device().model()
    answers = await all_of(model.submit(1), model.submit(2, 3), model.submit(4))
    assert answers == [[1], [2, 3], [4]]
    assert model.network.batches == [[1, 2, 3, 4]]


@simulated
async def test_arrivals_gather_while_the_backend_is_busy() -> None:
    """What arrives during an inference waits, and forms the next batch."""
    model = Device().model(image_s=1)
    tasks = []
    for number in (1, 2, 3, 4):
        tasks.append(model.submit(number))
        await asyncio.sleep(0.25)
    assert model.batcher.queued == 3
    assert await all_of(*tasks) == [[1], [2], [3], [4]]
    assert model.network.batches == [[1], [2, 3, 4]]


@simulated
async def test_what_would_be_answered_late_gives_its_place_to_what_would_not() -> None:
    """It is refused as its batch begins; unless nothing else waits, for what a batch takes is learned from batches."""
    model = Device().model(image_s=1)
    await model.submit(1)
    second = model.submit(2)
    await asyncio.sleep(0.5)
    hurried, patient = model.submit(3, deadline=now() + 2), model.submit(4, deadline=now() + 4)
    assert isinstance(await outcome(hurried), Overloaded)
    assert now() == pytest.approx(2)
    assert await all_of(second, patient) == [[2], [4]]
    assert await model.submit(5, deadline=now() + 0.5) == [5]
    assert model.network.batches == [[1], [2], [4], [5]]


@simulated
async def test_a_request_larger_than_a_batch_keeps_its_order() -> None:
    """Ten images with batches of four: three batches, one answer in the order sent."""
    model = Device().model()
    numbers = [9, 3, 8, 1, 7, 2, 6, 4, 5, 0]
    assert await model.submit(*numbers) == numbers
    assert model.network.batches == [numbers[:4], numbers[4:8], numbers[8:]]


@simulated
async def test_a_request_of_no_images_is_answered_at_once() -> None:
    """With no answers; nothing is inferred."""
    model = Device().model()
    assert await model.submit() == []
    assert model.network.batches == []


@simulated
async def test_answers_may_be_rows_of_an_array() -> None:
    """A backend may answer with any sequence, also one that adds to lists as an array does."""
    device = Device()
    batcher: Batcher[Any] = Batcher(
        lambda pixels, *, alone: pixels.reshape(len(pixels), -1), ROOMY, device.turns, lambda report: None, now
    )
    rows: list[Any] = await batcher.submit(images(*range(6)))
    assert [row.tolist() for row in rows] == [[0, 0, number] for number in range(6)]


@simulated
async def test_what_nobody_waits_for_is_dropped_before_inference_and_counts_no_longer() -> None:
    """Cancelled requests make room at once and the backend never sees them; their neighbours are answered."""
    model = Device().model(Limits(max_batch_size=4, max_queue_size=12, max_wait_s=60))
    first = model.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone, large, kept = model.submit(2), model.submit(*range(10, 20)), model.submit(3)
    await asyncio.sleep(0)
    assert model.batcher.queued == 12
    gone.cancel()
    large.cancel()
    await asyncio.sleep(0)
    assert model.batcher.queued == 1
    many = model.submit(*range(30, 41))
    assert await all_of(first, kept, many) == [[1], [3], [*range(30, 41)]]
    assert model.network.batches == [[1], [3, 30, 31, 32], [33, 34, 35, 36], [37, 38, 39, 40]]


@simulated
async def test_what_nobody_waits_for_gives_its_memory_back_at_once() -> None:
    """Clients that come and leave while the backend is busy hold no more memory than the bound says."""
    model = Device().model(image_s=100)
    first = model.submit(1)
    await asyncio.sleep(1)
    pixels = images(2)
    held = weakref.ref(pixels)
    task = asyncio.ensure_future(model.batcher.submit(pixels, BULK))
    del pixels
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.sleep(1)
    del task
    assert held() is None
    assert await first == [1]


@simulated
async def test_the_rest_of_a_cancelled_request_is_not_inferred() -> None:
    """A client that leaves after the first of its batches costs the device no more than the one that runs."""
    model = Device().model(image_s=1)
    large = model.submit(*range(100))
    await asyncio.sleep(5)
    large.cancel()
    await asyncio.sleep(0)
    assert model.batcher.queued == 0
    assert await model.submit(200) == [200]
    assert model.network.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [200]]


@simulated
async def test_the_batcher_goes_on_when_everybody_left() -> None:
    """A queue of cancelled requests only leaves the backend idle and the batcher ready."""
    model = Device().model()
    first = model.submit(1)
    await asyncio.sleep(0.1)
    gone = model.submit(2)
    await asyncio.sleep(0)
    gone.cancel()
    assert await first == [1]
    await asyncio.sleep(1)
    assert await model.submit(3) == [3]
    assert model.network.batches == [[1], [3]]


@simulated
async def test_a_request_cancelled_during_inference_costs_its_neighbours_nothing() -> None:
    """The others in its batch are answered all the same."""
    model = Device().model()
    gone, kept = model.submit(1), model.submit(2)
    await asyncio.sleep(0.1)
    gone.cancel()
    assert await kept == [2]
    assert isinstance(await outcome(gone), TimeoutError)


@pytest.mark.parametrize(
    "limits", [Limits(2, 3, 60), Limits(2, 1000, 60, max_queue_bytes=3 * IMAGE_BYTES)], ids=["images", "bytes"]
)
@simulated
async def test_a_full_queue_refuses_at_once(limits: Limits) -> None:
    """An image or a byte more than the queue holds raises Overloaded without waiting; those inside are answered."""
    model = Device().model(limits)
    running = model.submit(1, 2)
    await asyncio.sleep(0.1)
    waiting = model.submit(3, 4)
    await asyncio.sleep(0.1)
    with pytest.raises(Overloaded, match="2 images already wait") as refusal:
        await model.submit(5, 6)
    assert now() == 0.2
    assert dict(refusal.value.headers)[b"retry-after"].isdigit()
    last = model.submit(7)
    assert await all_of(running, waiting, last) == [[1, 2], [3, 4], [7]]
    assert model.batcher.queued == 0


@simulated
async def test_an_empty_queue_takes_a_request_larger_than_itself() -> None:
    """What a request may hold is decided elsewhere: alone it is never refused, only what comes after it is."""
    model = Device().model(Limits(2, 3, 60, max_queue_bytes=4 * IMAGE_BYTES))
    large = model.submit(*range(10))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await model.submit(20)
    assert await large == [*range(10)]


@simulated
async def test_overdue_images_are_refused_and_fresh_ones_answered() -> None:
    """What was not dispatched within max_wait_s gets Overloaded and no inference; later ones are unharmed."""
    model = Device().model(Limits(4, 100, max_wait_s=0.5), image_s=1)
    first, late = model.submit(1), None
    await asyncio.sleep(0.25)
    late = model.submit(2)
    await asyncio.sleep(0.25)
    just_in_time = model.submit(3)
    assert await all_of(first, just_in_time) == [[1], [3]]
    with pytest.raises(Overloaded, match="No batch was free in time"):
        await late
    assert model.network.batches == [[1], [3]]


@simulated
async def test_a_client_may_have_less_patience_but_not_more() -> None:
    """A deadline of its own shortens a request's wait; one beyond max_wait_s changes nothing."""
    model = Device().model(Limits(4, 100, max_wait_s=2.5), image_s=1)
    first = model.submit(*range(3))
    await asyncio.sleep(0.1)
    impatient, patient, too_patient = model.submit(3, deadline=2), model.submit(4, deadline=3), model.submit(5)
    await asyncio.sleep(0)
    assert await first == [0, 1, 2]
    assert [type(await outcome(task)) for task in (impatient, patient, too_patient)] == [Overloaded] * 3
    running = model.submit(6, 7)
    await asyncio.sleep(0.1)
    assert await all_of(running, model.submit(8, deadline=math.inf)) == [[6, 7], [8]]
    assert model.network.batches == [[0, 1, 2], [6, 7], [8]]


@simulated
async def test_a_deadline_that_has_passed_is_refused_by_an_idle_device_too() -> None:
    """Whoever gave up already is not inferred for."""
    model = Device().model()
    await asyncio.sleep(5)
    with pytest.raises(Overloaded):
        await model.submit(1, deadline=4.9)
    assert await model.submit(2, deadline=5) == [2]
    assert model.network.batches == [[2]]


@simulated
async def test_what_is_late_is_refused_at_its_time() -> None:
    """Not when the next batch is taken, which may be much later: each at its own deadline, and makes room at once."""
    model = Device().model(Limits(4, 100, max_wait_s=2), image_s=25)
    running = model.submit(*range(4))
    await asyncio.sleep(1)
    refused: dict[str, float] = {}

    async def client(name: str, *numbers: int, priority: Priority = INTERACTIVE, patience_s: float = math.inf) -> None:
        assert isinstance(
            await outcome(model.submit(*numbers, priority=priority, deadline=now() + patience_s)), Overloaded
        )
        refused[name] = now()

    await asyncio.gather(
        client("patient", 10),
        client("impatient", 11, patience_s=0.25),
        client("bulk", *range(20, 40), priority=BULK, patience_s=0.5),
        client("late already", 12, patience_s=-1),
    )
    for name, at in {"late already": 1, "impatient": 1.25, "bulk": 1.5, "patient": 3}.items():
        assert at <= refused[name] <= at + GRACE_S + SOON_S
    assert model.batcher.queued == 0
    assert await running == [0, 1, 2, 3]
    assert model.network.batches == [[0, 1, 2, 3]]


@simulated
async def test_a_request_of_several_batches_does_not_outlive_its_deadline() -> None:
    """It is refused though some of its batches have run; what is left of it costs nothing."""
    model = Device().model(image_s=0.25)
    large, other = model.submit(*range(40), priority=BULK, deadline=2.5), model.submit(50)
    assert isinstance(await outcome(large), Overloaded)
    assert 2.5 <= now() <= 2.5 + GRACE_S + SOON_S
    assert await other == [50]
    await asyncio.sleep(10)
    assert sum(map(len, model.network.batches)) <= 13


@simulated
async def test_bulk_leaves_a_part_of_the_queue_to_others() -> None:
    """In images and in bytes, even where one request of bulk is larger than the whole queue."""
    for limits in (Limits(4, 40, 60), Limits(4, 1000, 60, 40 * IMAGE_BYTES)):
        for bulk in (30, 50):
            model = Device().model(limits, image_s=10)
            running = model.submit(*range(4))
            await asyncio.sleep(1)
            waiting = [model.submit(*range(bulk), priority=BULK)]
            await asyncio.sleep(0)
            assert isinstance(await outcome(model.submit(1, 2, priority=BULK)), Overloaded)
            waiting += [model.submit(number) for number in range(10)]
            await asyncio.sleep(0)
            assert isinstance(await outcome(model.submit(11)), Overloaded)
            assert model.batcher.queued == bulk + 10
            for task in (running, *waiting):
                task.cancel()


@simulated
async def test_when_to_retry_is_told_by_the_queue_and_its_pace() -> None:
    """As long as what waits takes to leave, at the pace of the last batches, other models' turns included."""
    device = Device()
    limits = Limits(4, 60, 60)
    model, rival = device.model(limits, image_s=0.25), device.model(limits, image_s=0.25)

    async def told() -> int:
        with pytest.raises(Overloaded) as refusal:
            await model.submit(*range(60))
        return int(dict(refusal.value.headers)[b"retry-after"])

    waiting = [model.submit(number) for number in range(60)]
    await asyncio.sleep(0)
    assert await told() == 1
    await asyncio.sleep(2.1)
    # Two batches have run and the third is running.
    assert await told() == math.ceil(48 * 0.25)
    rivals = [rival.submit(number) for number in range(60)]
    await asyncio.sleep(20)
    left = model.batcher.queued
    assert left * 0.4 <= await told() <= math.ceil(left * 0.5)
    await all_of(*waiting, *rivals)
    soon = device.model(Limits(4, 60, max_wait_s=3), image_s=2)
    waiting = [soon.submit(number) for number in range(8)]
    await asyncio.sleep(9)
    waiting += [soon.submit(number) for number in range(64)]
    refusals = [error for task in waiting if isinstance(error := await outcome(task), Overloaded)]
    assert {int(dict(error.headers)[b"retry-after"]) for error in refusals} <= {1, 2, 3}


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    broken=st.frozensets(st.integers(0, 47)),
    on_loop=st.booleans(),
)
@settings(deadline=None, max_examples=60)
@simulated
async def test_only_the_images_that_break_the_backend_go_unanswered(
    sizes: list[int], broken: frozenset[int], on_loop: bool
) -> None:
    """Whichever images make the backend fail: each has its own exception, all others their answers."""
    model = Device(on_loop=on_loop).model(Limits(16, 1000, 60), image_s=0.001, broken=broken)
    ends = np.cumsum(sizes).tolist()
    requests = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    for numbers, answers in zip(requests, await all_of(*(model.submit(*r) for r in requests)), strict=True):
        for number, answer in zip(numbers, answers, strict=True):
            if number in broken:
                assert isinstance(answer, ValueError)
                assert str(answer) == f"cannot infer [{number}]"
            else:
                assert answer == number


@simulated
async def test_a_broken_image_is_found_by_halves() -> None:
    """One of 64 costs two more runs for each halving, not 64."""
    model = Device().model(Limits(64, 1000, 60), broken={37})
    answers = await model.submit(*range(64))
    assert [number for number, answer in enumerate(answers) if isinstance(answer, Exception)] == [37]
    assert len(model.network.batches) == 1 + 2 * math.log2(64)


@simulated
async def test_a_backend_that_always_fails_tells_everybody_and_can_recover() -> None:
    """Everybody has the exception, large requests too; once the backend works again, so does the batcher."""
    model = Device().model(broken=range(100))
    for answers in await all_of(model.submit(1), model.submit(2, 3), model.submit(*range(10, 20))):
        assert {type(answer) for answer in answers} == {ValueError}
    model.network.broken = ()
    assert await model.submit(1) == [1]


@pytest.mark.parametrize("surplus", [-1, 1])
@simulated
async def test_a_wrong_number_of_answers_is_an_error_for_everybody(surplus: int) -> None:
    """No answer is given to the wrong image and nobody hangs where the backend miscounts."""
    device = Device()

    def forward(pixels: Pixels, *, alone: bool) -> list[int]:
        return [0] * (len(pixels) + surplus)

    batcher: Batcher[int] = Batcher(forward, ROOMY, device.turns, lambda report: None, now)
    for answers in await all_of(batcher.submit(images(1)), batcher.submit(images(2, 3, 4, 5))):
        assert {str(answer) for answer in answers} == {f"the backend gave {1 + surplus} answers for 1 images"}


@pytest.mark.parametrize("on_loop", [False, True])
@simulated
async def test_images_that_do_not_fit_together_fail_alone(on_loop: bool) -> None:
    """A batch that cannot be put together is an error for those in it, and the next one runs."""
    device = Device(on_loop=on_loop)
    model = device.model(image_s=0.0001)
    assert await model.submit(0) == [0]
    other = asyncio.ensure_future(model.batcher.submit(np.zeros((1, 2, 2, 3), np.uint8)))
    mixed = [*await model.submit(1), *await other]
    assert {type(answer) for answer in mixed} == {ValueError}
    assert await model.submit(2) == [2]


@pytest.mark.parametrize("on_loop", [False, True])
@simulated
async def test_a_report_that_fails_does_not_stop_the_next_batch(
    on_loop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The answers are given all the same, and the log says what failed."""
    device = Device(on_loop=on_loop)
    network = device.model(image_s=0.0001).network

    def report(_: BatchReport) -> None:
        raise RuntimeError("no room for metrics")

    batcher: Batcher[int] = Batcher(network.forward, ROOMY, device.turns, report, now)
    for _ in range(2):
        answers = await all_of(batcher.submit(images(1)), batcher.submit(images(*range(2, 9))))
        assert answers == [[1], [*range(2, 9)]]
    assert [record.message for record in caplog.records] == ["a batch could not be reported"] * 4
    assert "RuntimeError: no room for metrics" in caplog.text


class Listener:
    """Waits without a future, and fails at what it is told if it is `deaf`."""

    def __init__(self, deaf: bool = False) -> None:
        self.told: list[Answered | Exception] = []
        self._deaf = deaf

    def done(self) -> bool:
        return bool(self.told)

    def set_result(self, result: Answered, /) -> None:
        self._hear(result)

    def set_exception(self, exception: Exception, /) -> None:
        self._hear(exception)

    def _hear(self, what: Answered | Exception) -> None:
        if self._deaf:
            raise RuntimeError("what did you say?")
        self.told.append(what)


@pytest.mark.parametrize("on_loop", [False, True])
@simulated
async def test_who_cannot_take_an_answer_costs_others_nothing(on_loop: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its neighbours in the batch and the next batches are answered, also where it was late; the log has the reason."""
    model = Device(on_loop=on_loop).model(image_s=0.01)
    for _ in range(2):
        first, second = Listener(), Listener()
        for number, listener in enumerate((first, Listener(deaf=True), second)):
            model.batcher.enqueue(images(number), listener)
        await asyncio.sleep(0.1)
        assert (first.told, second.told) == ([[0]], [[2]])
    late = Listener()
    for listener in (Listener(deaf=True), late):
        model.batcher.enqueue(images(1), listener, deadline=now() - 1)
    await asyncio.sleep(0.1)
    assert [type(told) for told in late.told] == [Overloaded]
    assert [record.message for record in caplog.records] == ["an answer could not be given"] * 3


@simulated
async def test_what_would_be_late_is_refused_at_the_door() -> None:
    """By the pace of the batches before; whoever has the time is taken, and so is whoever finds nobody waiting."""
    model = Device().model(image_s=0.01)
    await model.submit(0)
    model.batcher.enqueue(images(1), Listener(), deadline=now() + 0.001)
    assert model.batcher.queued == 1
    for number in range(10):
        model.batcher.enqueue(images(number), Listener())
    with pytest.raises(Overloaded) as refused:
        model.batcher.enqueue(images(1), Listener(), deadline=now() + 0.05)
    assert dict(refused.value.headers)[b"retry-after"] == b"1"
    with pytest.raises(Overloaded):
        model.batcher.check_pace(0.05)
    model.batcher.check_pace(0.5)
    patient = Listener()
    model.batcher.enqueue(images(7), patient, deadline=now() + 0.5)
    await asyncio.sleep(1)
    assert patient.told == [[7]]


@simulated
async def test_who_leaves_the_queue_is_told_nothing() -> None:
    """Nor is what it sent inferred."""
    model = Device().model()
    running = model.submit(1)
    await asyncio.sleep(0.1)
    listener, other = Listener(), Listener()
    job = model.batcher.enqueue(images(2), listener)
    model.batcher.enqueue(images(3), other)
    model.batcher.leave(job)
    model.batcher.leave(job)
    assert model.batcher.queued == 1
    assert await running == [1]
    await asyncio.sleep(1)
    assert (listener.told, other.told) == ([], [[3]])
    assert model.network.batches == [[1], [3]]


@simulated
async def test_a_stopped_executor_leaves_nobody_waiting() -> None:
    """Once the service is stopping, whoever still waits or comes is told to go elsewhere."""
    device = Device()
    model = device.model()
    running = model.submit(1)
    await asyncio.sleep(0.1)
    device.thread.shutdown()
    waiting = [model.submit(2), model.submit(*range(10, 20))]
    assert await running == [1]
    for task in (*waiting, model.submit(3)):
        assert {type(answer) for answer in await task} == {NotReady}
    assert model.batcher.queued == 0
