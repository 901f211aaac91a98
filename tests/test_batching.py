"""service.batching: nothing lost, nothing mixed up, nobody waiting without need or without end."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends import Outputs
from service.batching import Batcher, BatchReport, Limits
from service.errors import NotReady, Overloaded
from service.images import Pixels

P = ParamSpec("P")
T = TypeVar("T")

ROOMY = Limits(max_batch_size=4, max_queue_size=1000, max_wait_s=60)


def images(*numbers: int) -> Pixels:
    """(K, 1, 1, 3): pictures that each carry a number below 65,536."""
    return np.array([[[[number // 256, number % 256, 0]]] for number in numbers], np.uint8)


def numbers_in(pixels: Pixels) -> list[int]:
    wide = pixels[:, 0, 0].astype(int)
    return [int(number) for number in wide[:, 0] * 256 + wide[:, 1]]


def numbers_of(outputs: Outputs) -> list[int]:
    """The numbers an answer is about; every field must be about the same."""
    numbers = outputs.energy.astype(int).tolist()
    assert outputs.logits[:, 0].tolist() == outputs.probabilities[:, 1].tolist() == numbers
    assert outputs.is_ood.tolist() == outputs.prediction_set[:, 0].tolist() == [number % 2 == 1 for number in numbers]
    return [int(number) for number in numbers]


class Network:
    """Answers each image with the number in its pixels; raises at a batch that holds a broken one."""

    def __init__(self, broken: Iterable[int] = ()) -> None:
        self.broken = set(broken)
        self.batches: list[list[int]] = []

    def forward(self, pixels: Pixels) -> Outputs:
        numbers = numbers_in(pixels)
        self.batches.append(numbers)
        if self.broken & set(numbers):
            raise ValueError(f"cannot infer {sorted(self.broken & set(numbers))}")
        column = np.array(numbers, np.float32)
        odd = column % 2 == 1
        return Outputs(np.stack([column, -column], 1), np.stack([-column, column], 1), odd[:, None], column, odd)


class SteppedExecutor(Executor):
    """Runs a task when the test says so: until then the backend is busy."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self.tasks.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    async def step(self) -> None:
        """End the running task and let everybody notice."""
        self.tasks.pop(0)()
        await turns()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Bench:
    """A batcher over a network, run by hand."""

    def __init__(self, limits: Limits = ROOMY, broken: Iterable[int] = ()) -> None:
        self.network = Network(broken)
        self.executor = SteppedExecutor()
        self.reports: list[BatchReport] = []
        self.batcher = Batcher(self.network.forward, limits, self.executor, self.reports.append)

    def submit(self, *numbers: int) -> asyncio.Task[Outputs]:
        return asyncio.ensure_future(self.batcher.submit(images(*numbers)))

    async def finish(self) -> None:
        await turns()
        while self.executor.tasks:
            await self.executor.step()


def run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scenario, 20))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 7)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.just(0)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=40,
)


@given(actions=ACTIONS, max_batch_size=st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_every_interleaving_answers_each_request_once_with_its_own_images(
    actions: list[tuple[str, int]], max_batch_size: int
) -> None:
    """Whatever arrives, leaves and finishes when: answers are their own, images run once, batches fit."""

    async def scenario() -> None:
        bench = Bench(Limits(max_batch_size, 10_000, 60))
        asked: list[tuple[list[int], asyncio.Task[Outputs]]] = []
        following = 0
        for action, value in actions:
            if action == "submit":
                numbers = list(range(following, following + value))
                following += value
                asked.append((numbers, bench.submit(*numbers)))
            elif action == "cancel" and value < len(asked):
                asked[value][1].cancel()
            elif action == "step" and bench.executor.tasks:
                await bench.executor.step()
            elif action == "turn":
                await turns(1)
        await bench.finish()

        assert all(task.done() for _, task in asked)
        inferred = [number for batch in bench.network.batches for number in batch]
        for numbers, task in asked:
            assert task.cancelled() or numbers_of(task.result()) == numbers
            assert task.cancelled() or set(numbers) <= set(inferred)
        assert len(inferred) == len(set(inferred))
        assert inferred == sorted(inferred)
        assert all(1 <= len(batch) <= max_batch_size for batch in bench.network.batches)
        assert [report.size for report in bench.reports] == [len(batch) for batch in bench.network.batches]
        assert bench.batcher.queued == 0

    run(scenario())


def test_a_real_thread_answers_five_hundred_concurrent_requests_correctly() -> None:
    """With a thread in between, every request still gets its own answer and every image runs once."""

    async def scenario() -> None:
        network = Network()
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(network.forward, Limits(16, 60_000, 60), executor, lambda report: None)
            sizes = np.random.default_rng(0).integers(1, 40, 500)
            ends = np.cumsum(sizes).tolist()
            requests = [list(range(end - size, end)) for size, end in zip(sizes.tolist(), ends, strict=True)]

            async def client(numbers: list[int]) -> None:
                await turns(numbers[0] % 50)
                assert numbers_of(await batcher.submit(images(*numbers))) == numbers

            await asyncio.gather(*map(client, requests))
        assert sorted(number for batch in network.batches for number in batch) == list(range(ends[-1]))
        assert max(map(len, network.batches)) <= 16

    run(scenario())


def test_a_lone_request_is_dispatched_at_once() -> None:
    """An idle backend gets a lone image in the next turn of the loop, without a timer."""

    async def scenario() -> None:
        bench = Bench()
        answer = bench.submit(7)
        await turns(2)
        assert len(bench.executor.tasks) == 1
        await bench.executor.step()
        assert numbers_of(answer.result()) == [7]

    run(scenario())


def test_requests_of_one_turn_share_a_batch() -> None:
    """What arrives in the same turn of the loop goes together, though the backend is idle."""

    async def scenario() -> None:
        bench = Bench()
        answers = [bench.submit(1), bench.submit(2, 3), bench.submit(4)]
        await bench.finish()
        assert bench.network.batches == [[1, 2, 3, 4]]
        assert [numbers_of(answer.result()) for answer in answers] == [[1], [2, 3], [4]]

    run(scenario())


def test_arrivals_accumulate_while_the_backend_is_busy() -> None:
    """What arrives during an inference forms the next batch."""

    async def scenario() -> None:
        bench = Bench()
        bench.submit(1)
        for number in (2, 3, 4):
            await turns()
            bench.submit(number)
        await turns()
        assert bench.batcher.queued == 3
        assert len(bench.executor.tasks) == 1
        await bench.finish()
        assert bench.network.batches == [[1], [2, 3, 4]]

    run(scenario())


def test_a_request_larger_than_a_batch_keeps_its_order() -> None:
    """Ten images with batches of four: three batches, one answer in the order sent."""

    async def scenario() -> None:
        bench = Bench()
        numbers = [9, 3, 8, 1, 7, 2, 6, 4, 5, 0]
        answer = bench.submit(*numbers)
        await bench.finish()
        assert numbers_of(answer.result()) == numbers
        assert bench.network.batches == [numbers[:4], numbers[4:8], numbers[8:]]

    run(scenario())


def test_a_request_that_does_not_fit_the_rest_of_a_batch_waits_for_the_next() -> None:
    """The images of a request no larger than a batch stay together."""

    async def scenario() -> None:
        bench = Bench()
        bench.submit(1, 2, 3)
        bench.submit(4, 5)
        await bench.finish()
        assert bench.network.batches == [[1, 2, 3], [4, 5]]

    run(scenario())


def test_cancelled_requests_are_dropped_before_inference() -> None:
    """Nobody waits for them, so the backend never sees them; their neighbours are answered."""

    async def scenario() -> None:
        bench = Bench()
        bench.submit(1)
        await turns()
        gone, large, kept = bench.submit(2), bench.submit(*range(10, 20)), bench.submit(3)
        await turns()
        gone.cancel()
        large.cancel()
        await bench.finish()
        assert bench.network.batches == [[1], [3]]
        assert numbers_of(kept.result()) == [3]
        assert bench.batcher.queued == 0

    run(scenario())


def test_the_batcher_goes_on_when_everybody_left() -> None:
    """A queue of cancelled requests only leaves the backend idle and the batcher ready."""

    async def scenario() -> None:
        bench = Bench()
        bench.submit(1)
        await turns()
        gone = bench.submit(2)
        await turns()
        gone.cancel()
        await bench.finish()
        later = bench.submit(3)
        await bench.finish()
        assert bench.network.batches == [[1], [3]]
        assert numbers_of(later.result()) == [3]

    run(scenario())


def test_a_request_cancelled_during_inference_costs_its_neighbours_nothing() -> None:
    """The others in its batch are answered all the same."""

    async def scenario() -> None:
        bench = Bench()
        gone, kept = bench.submit(1), bench.submit(2)
        await turns()
        gone.cancel()
        await bench.finish()
        assert gone.cancelled()
        assert numbers_of(kept.result()) == [2]

    run(scenario())


def test_a_full_queue_refuses_at_once() -> None:
    """One image more than the queue holds raises Overloaded without waiting; those inside are answered."""

    async def scenario() -> None:
        bench = Bench(Limits(max_batch_size=2, max_queue_size=3, max_wait_s=60))
        running = bench.submit(1, 2)
        await turns()
        waiting = bench.submit(3, 4)
        await turns()
        with pytest.raises(Overloaded, match="2 images already wait") as refusal:
            bench.batcher.submit(images(5, 6)).send(None)
        assert dict(refusal.value.headers)[b"retry-after"].isdigit()
        assert bench.batcher.queued == 2
        last = bench.submit(7)
        await bench.finish()
        assert [numbers_of(task.result()) for task in (running, waiting, last)] == [[1, 2], [3, 4], [7]]

    run(scenario())


def test_overdue_images_are_refused_and_fresh_ones_answered() -> None:
    """An image not dispatched within max_wait_s gets Overloaded and no inference; later ones are unharmed."""

    async def scenario() -> None:
        bench = Bench(Limits(max_batch_size=4, max_queue_size=100, max_wait_s=0.05))
        bench.submit(1)
        await turns()
        late = bench.submit(2)
        await turns()
        time.sleep(0.06)
        fresh = bench.submit(3)
        await bench.finish()
        with pytest.raises(Overloaded, match=r"within 0.05 s"):
            late.result()
        assert numbers_of(fresh.result()) == [3]
        assert bench.network.batches == [[1], [3]]

    run(scenario())


def test_an_image_that_breaks_the_backend_costs_only_its_own_answer() -> None:
    """The backend fails for one image of a batch; its neighbours get their answers."""

    async def scenario() -> None:
        bench = Bench(broken={2})
        answers = [bench.submit(number) for number in (1, 2, 3, 4)]
        await bench.finish()
        with pytest.raises(ValueError, match=r"cannot infer \[2\]"):
            answers.pop(1).result()
        assert [numbers_of(answer.result()) for answer in answers] == [[1], [3], [4]]

    run(scenario())


def test_a_backend_that_always_fails_tells_everybody_and_can_recover() -> None:
    """Every waiter gets the exception, large requests too; once the backend works again, so does the batcher."""

    async def scenario() -> None:
        bench = Bench(broken=range(100))
        answers = [bench.submit(1), bench.submit(2, 3), bench.submit(*range(10, 20))]
        await bench.finish()
        for answer in answers:
            with pytest.raises(ValueError, match="cannot infer"):
                answer.result()
        bench.network.broken.clear()
        later = bench.submit(1)
        await bench.finish()
        assert numbers_of(later.result()) == [1]
        assert bench.batcher.queued == 0

    run(scenario())


def test_a_report_that_fails_leaves_nobody_waiting() -> None:
    """Measuring a batch may fail; the waiters learn of it and the batcher goes on."""

    async def scenario() -> None:
        def report(_: BatchReport) -> None:
            raise RuntimeError("no room for metrics")

        executor = SteppedExecutor()
        batcher = Batcher(Network().forward, ROOMY, executor, report)
        for _ in range(2):
            answers = [asyncio.ensure_future(batcher.submit(images(number))) for number in (1, 2)]
            await turns()
            await executor.step()
            for answer in answers:
                with pytest.raises(RuntimeError, match="no room"):
                    answer.result()

    run(scenario())


def test_reports_tell_the_longest_wait() -> None:
    """A batch's report counts its images and the wait of the one that waited longest."""

    async def scenario() -> None:
        bench = Bench()
        bench.submit(1)
        await turns()
        bench.submit(2)
        await turns()
        time.sleep(0.03)
        bench.submit(3)
        await bench.finish()
        first, second = bench.reports
        assert (first.size, second.size) == (1, 2)
        assert second.waited_s >= 0.03
        assert 0 <= second.inference_s < 1

    run(scenario())


def test_a_stopped_executor_leaves_nobody_waiting() -> None:
    """Once the service is stopping, whoever still comes is told to go elsewhere."""

    async def scenario() -> None:
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(Network().forward, ROOMY, executor, lambda report: None)
        executor.shutdown()
        for _ in range(2):
            with pytest.raises(NotReady):
                await batcher.submit(images(1))
        assert batcher.queued == 0

    run(scenario())
