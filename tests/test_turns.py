"""service.turns: one device, several models, each with its fair part of the time."""

import asyncio
import functools
import math
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import Batcher, Limits
from service.board import Board
from service.images import Pixels
from service.turns import SECONDS_ON_LOOP, Turns
from tests.test_batching import BULK, ROOMY, SOON_S, Device, Model, all_of, images, now, numbers_in, simulated

ONE_AT_A_TIME = Limits(max_batch_size=1, max_queue_size=1_000_000, max_wait_s=math.inf)


@pytest.fixture(autouse=True)
def idle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without work counts as idle, not as between two images; one test asks for the difference."""
    monkeypatch.setattr("service.board.IDLE_S", 0.0)


def seconds_used(model: Model, start: float, end: float) -> float:
    """How much of the device's time from `start` to `end` went to this model."""
    return sum(max(0.0, min(end, until) - max(start, since)) for since, until in model.network.times)


def longest_batch_s(models: Collection[Model]) -> float:
    return max(until - since for model in models for since, until in model.network.times)


async def keep_busy(model: Model, until: float, in_hand: int = 10) -> None:
    """As many clients as `in_hand`, each with its next image as soon as the last is answered."""

    async def client() -> None:
        while now() < until:
            await model.submit(1)

    await asyncio.gather(*(client() for _ in range(in_hand)))


def assert_never_idle(models: Collection[Model], start: float, end: float) -> None:
    assert sum(seconds_used(model, start, end) for model in models) == pytest.approx(end - start)


@pytest.mark.slow
@given(
    image_s=st.lists(st.sampled_from([0.01, 0.03, 0.1, 0.7, 1.0]), min_size=2, max_size=4),
    max_batch_size=st.integers(1, 8),
    on_loop=st.booleans(),
)
@settings(deadline=None, max_examples=40)
@simulated
async def test_busy_models_share_the_time_to_within_a_batch(
    image_s: list[float], max_batch_size: int, on_loop: bool
) -> None:
    """However long their batches take, models that always have something to do get the same time on the device."""
    device = Device(on_loop=on_loop)
    models = [device.model(Limits(max_batch_size, 1000, math.inf), each) for each in image_s]
    await asyncio.gather(*(keep_busy(model, until=40) for model in models))
    assert_never_idle(models, 0, 40)
    longest = longest_batch_s(models)
    for end in (20, 30, 40):
        used = [seconds_used(model, 0, end) for model in models]
        # Goyal et al. 1996, theorem 1: two flows differ by no more than the longest packet of each.
        # On the loop, whoever was just answered may be back a turn too late for the next choice, and miss it.
        missed = 0.1 * end if on_loop else 0.0
        assert max(used) - min(used) <= 2 * longest + missed + SOON_S


@simulated
async def test_a_short_batch_runs_when_it_is_full() -> None:
    """At once, not when all else has been read; a long one does not, nor one of a model whose turn it is not."""
    device = Device(on_loop=True)
    short, long = (device.model(Limits(4, 1000, math.inf), image_s=seconds) for seconds in (0.001, 0.01))
    for model in (short, long):
        # What a batch takes is learned from the first.
        await model.submit(1)
    waiters = [asyncio.get_running_loop().create_future() for _ in range(9)]
    for number, waiter in enumerate(waiters[:3]):
        short.batcher.enqueue(images(number), waiter)
        short.batcher.run_full()
    assert not any(waiter.done() for waiter in waiters)
    short.batcher.enqueue(images(3), waiters[3])
    short.batcher.run_full()
    assert [waiter.done() for waiter in waiters] == [True] * 4 + [False] * 5
    for model, waiter in ((long, waiters[4]), *((short, waiter) for waiter in waiters[5:])):
        model.batcher.used_s = 0.0 if model is long else 1.0
        model.batcher.enqueue(images(4), waiter)
        model.batcher.run_full()
    assert not any(waiter.done() for waiter in waiters[4:])
    await asyncio.gather(*waiters)
    assert [len(batch) for batch in short.network.batches] == [1, 4, 4]
    assert [len(batch) for batch in long.network.batches] == [1, 1]


@simulated
async def test_a_model_with_batches_ten_times_as_long_does_not_starve_another() -> None:
    """The fast model runs ten batches for each slow one and waits for no more than one of those."""
    device = Device()
    slow, fast = device.model(image_s=0.25), device.model(image_s=0.025)
    await asyncio.gather(keep_busy(slow, until=100), keep_busy(fast, until=100))
    assert seconds_used(fast, 0, 100) == pytest.approx(50, abs=1)
    assert seconds_used(slow, 0, 100) == pytest.approx(50, abs=1)
    starts = [start for start, _ in fast.network.times if start < 100]
    assert max(np.diff(starts)) <= 4 * 0.25 + 4 * 0.025 + SOON_S


@pytest.mark.slow
@pytest.mark.parametrize("newcomer_image_s", [0.02, 0.5, 1.0])
@simulated
async def test_a_newcomer_after_hours_of_the_others_use_does_not_monopolise(newcomer_image_s: float) -> None:
    """A model that was idle for two hours has saved nothing up: from its first request on, time is shared."""
    device = Device()
    regular, newcomer = device.model(image_s=0.5), device.model(image_s=newcomer_image_s)
    hours = 2 * 3600
    regulars = asyncio.ensure_future(keep_busy(regular, until=hours + 60))
    await asyncio.sleep(hours)
    await asyncio.gather(keep_busy(newcomer, until=hours + 60), regulars)
    longest = longest_batch_s([regular, newcomer])
    for seconds in (10, 30, 60):
        used = [seconds_used(model, hours, hours + seconds) for model in (regular, newcomer)]
        assert abs(used[0] - used[1]) <= 2 * longest + SOON_S


@simulated
async def test_a_model_that_pauses_again_and_again_saves_nothing_up() -> None:
    """After each of its pauses the time is shared anew; its pauses cost it nothing either."""
    device = Device()
    regular, visitor = device.model(image_s=0.05), device.model(image_s=0.05)
    regulars = asyncio.ensure_future(keep_busy(regular, until=200))
    for start in (20, 60, 100, 140):
        await asyncio.sleep(start - now())
        await keep_busy(visitor, until=start + 20)
        assert seconds_used(visitor, start, start + 20) == pytest.approx(10, abs=0.5)
    await regulars


@pytest.mark.slow
@simulated
async def test_a_model_owes_nothing_for_what_it_used_while_nobody_else_wanted_it() -> None:
    """A long time alone on the device is not held against a model once another comes and goes."""
    device = Device()
    first, second = device.model(image_s=0.05), device.model(image_s=0.05)
    await keep_busy(first, until=600)
    await asyncio.sleep(10)
    start = now()
    await asyncio.gather(keep_busy(first, until=start + 20), keep_busy(second, until=start + 20))
    assert seconds_used(first, start, start + 20) == pytest.approx(10, abs=0.5)


@simulated
async def test_what_was_used_is_forgotten_once_nothing_waits() -> None:
    """A long batch on a device that has since been idle gives nobody a lead: it kept nobody waiting."""
    device = Device()
    first, second = device.model(ONE_AT_A_TIME, image_s=10), device.model(ONE_AT_A_TIME, image_s=0.5)
    running = first.submit(1)
    await asyncio.sleep(1)
    await all_of(running, second.submit(1))
    await asyncio.sleep(60)
    start = now()
    many = [second.submit(number) for number in range(20)]
    await asyncio.sleep(0.25)
    await first.submit(2)
    assert now() <= start + 3 * 0.5 + 10
    await asyncio.gather(*many)


@simulated
async def test_a_newcomer_does_not_pay_for_what_a_third_has_used() -> None:
    """Whoever comes during another's batch stands with that one, not behind all that it has not used yet."""
    device = Device()
    third, regular, newcomer = (device.model(ONE_AT_A_TIME, image_s) for image_s in (10, 0.5, 0.5))
    tasks = [third.submit(1)]
    await asyncio.sleep(1)
    tasks.append(regular.submit(1))
    await asyncio.sleep(9.25)
    coming = newcomer.submit(1)
    await asyncio.sleep(0)
    tasks += [regular.submit(number) for number in range(20)]
    await coming
    assert now() <= 10.5 + 2 * 0.5
    await asyncio.gather(*tasks)


@simulated
async def test_a_device_never_idles_while_any_model_has_something() -> None:
    """Between the batches of two models no time passes, whoever is next and whoever left meanwhile."""
    device = Device()
    models = [device.model(image_s=0.5), device.model(image_s=0.125), device.model(image_s=0.25)]
    gone = [model.submit(*range(10)) for model in models]
    kept = [model.submit(*range(10, 20)) for model in models]
    await asyncio.sleep(0.25)
    for task in gone:
        task.cancel()
    await asyncio.gather(*kept)
    assert_never_idle(models, 0, now())


@simulated
async def test_a_model_that_everybody_left_passes_its_turn_on() -> None:
    """Its empty queue costs the other model nothing."""
    device = Device()
    left, other = device.model(), device.model()
    running = other.submit(1)
    await asyncio.sleep(0.1)
    gone, waiting = left.submit(1), other.submit(2)
    await asyncio.sleep(0)
    gone.cancel()
    assert await all_of(running, waiting) == [[1], [2]]
    assert now() == 0.5
    assert left.network.batches == []


@simulated
async def test_short_batches_run_on_the_loop_and_long_ones_in_the_thread() -> None:
    """A batch goes to the thread unless it is known to take no longer than SECONDS_ON_LOOP."""
    device = Device(on_loop=True)
    model = device.model(Limits(16, 1000, 60), image_s=SECONDS_ON_LOOP / 8)
    await model.submit(0)
    assert device.thread.ran == 1, "how long it takes was not known"
    await model.submit(1)
    await model.submit(*range(7))
    assert device.thread.ran == 1
    await model.submit(*range(9))
    assert device.thread.ran == 2
    model.network.image_s = 10 * SECONDS_ON_LOOP
    for _ in range(20):
        await model.submit(1)
    assert device.thread.ran >= 20, "it was not noticed that batches take longer now"


@simulated
async def test_nothing_runs_on_the_loop_of_a_gpus_worker() -> None:
    """There even the shortest batch leaves the loop free."""
    device = Device(on_loop=False)
    model = device.model(image_s=SECONDS_ON_LOOP / 100)
    for count in range(1, 5):
        await model.submit(1)
        assert device.thread.ran == count


@pytest.mark.parametrize("on_loop", [False, True])
@simulated
async def test_the_loop_gets_a_word_in_between_short_batches(on_loop: bool) -> None:
    """A long queue of short batches does not keep answers from being written until all of it has run."""
    device = Device(on_loop=on_loop)
    model = device.model(ONE_AT_A_TIME, image_s=0.001)
    await model.submit(0)
    start = now()
    answered: list[float] = []
    tasks = [model.submit(number) for number in range(10)]
    for task in tasks:
        task.add_done_callback(lambda done: answered.append(now() - start))
    await asyncio.gather(*tasks)
    assert answered == pytest.approx([0.001 * (count + 1 + on_loop * (count < 9)) for count in range(10)], abs=0.0015)


@pytest.mark.parametrize("on_loop", [False, True])
@simulated
async def test_a_batch_is_told_whether_other_workers_are_idle(on_loop: bool, tmp_path: Path) -> None:
    """`alone` is what the board says when the batch starts; what this worker itself has in hand does not matter."""
    other = Board(tmp_path / "board", 1)
    model = Device(on_loop=on_loop, board=Board(tmp_path / "board", 2)).model(image_s=0.001)
    for expected, change in ((True, 0), (False, 3), (False, -2), (True, -1)):
        other.add_images(change)
        await asyncio.gather(model.submit(1), model.submit(2, 3))
        assert model.network.alone.pop() is expected


@simulated
async def test_the_board_shows_the_images_in_hand(tmp_path: Path) -> None:
    """Others see this worker busy from a request's arrival until it is answered, refused or cancelled."""
    board, other = Board(tmp_path / "board", 1), Board(tmp_path / "board", 2)
    model = Device(board=board).model(Limits(4, 4, 0.3))
    idle = [other.others_idle]
    first = model.submit(1, 2, 3)
    await asyncio.sleep(0.1)
    late, gone, too_many = model.submit(4), model.submit(5), model.submit(*range(10))
    await asyncio.sleep(0.1)
    gone.cancel()
    idle.append(other.others_idle)
    results = await asyncio.gather(late, gone, too_many, first, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Overloaded", "CancelledError", "Overloaded", "list"]
    assert [*idle, other.others_idle] == [True, False, True]


class Grudging(ThreadPoolExecutor):
    """Takes a batch and then cancels it, as an executor may that is shut down."""

    def submit(self, *args: object, **kwargs: object) -> Future[object]:  # type: ignore[override]
        future: Future[object] = Future()
        asyncio.get_running_loop().call_later(1, future.cancel)
        return future


@simulated
async def test_a_batch_that_the_executor_drops_leaves_nobody_waiting() -> None:
    """Those in it get the error, and whatever waits has its turn."""
    with Grudging(1) as executor:
        turns = Turns(executor, Board(), on_loop=False)
        network = Device().model().network
        batcher: Batcher[int] = Batcher(network.forward, ROOMY, turns, lambda report: None, now)
        results = await asyncio.gather(batcher.submit(images(1)), batcher.submit(images(*range(6)), BULK))
    assert {type(answer).__name__ for answers in results for answer in answers} == {"CancelledError"}
    assert now() == 2


def test_two_models_in_a_real_thread_never_run_at_once() -> None:
    """Whatever the models, a device runs one batch at a time."""
    running = threading.Lock()

    def forward(model: int, pixels: Pixels, *, alone: bool) -> list[tuple[int, int]]:
        assert running.acquire(blocking=False)
        try:
            return [(model, number) for number in numbers_in(pixels)]
        finally:
            running.release()

    async def scenario() -> None:
        with ThreadPoolExecutor(2) as executor:
            turns = Turns(executor, Board(), on_loop=False)
            models: list[Batcher[tuple[int, int]]] = [
                Batcher(functools.partial(forward, model), ROOMY, turns, lambda report: None) for model in range(3)
            ]
            asked = [(number % 3, number) for number in range(600)]
            answers = await asyncio.gather(*(models[model].submit(images(number)) for model, number in asked))
            assert answers == [[each] for each in asked]

    asyncio.run(asyncio.wait_for(scenario(), 20))
