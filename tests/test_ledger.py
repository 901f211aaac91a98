"""service.ledger: who uses the store waits for no other, and a store that fails is told of at once and forgiven."""

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from service.drift import Tally
from service.errors import FeedbackUnavailable, NotReady
from service.ledger import FRESH_S, MOST_WAITING, RETRY_S, Ledger
from service.stores import Label, LabelledAnswers, Outcome, Store, StoreError, Tallies


class Fragile(Store):
    """A store that can be made to fail or to hang, and counts how often it is asked."""

    def __init__(self) -> None:
        self.failing = self.closed = False
        self.asked = 0
        self.going = threading.Event()
        self.going.set()

    def record(self, labels: Sequence[Label], now: float) -> list[Outcome]:
        self._ask()
        return []

    def tallies(self) -> Tallies:
        self._ask()
        return {("pets", "one"): Tally(labels=self.asked)}

    def read(self, model: str) -> LabelledAnswers:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def _ask(self) -> None:
        self.asked += 1
        self.going.wait(10)
        if self.failing:
            raise StoreError("no room")


class Bench:
    """A ledger over a fragile store, and a clock."""

    def __init__(self, *, failing: bool = False) -> None:
        self.store, self.now = Fragile(), 1000.0
        self.store.failing = failing
        self.ledger = Ledger(self.store, lambda: self.now)
        # What it does at its start is done.
        self.ledger._thread.submit(lambda: None).result()
        self.store.asked = 0

    def record(self) -> list[Outcome]:
        return asyncio.run(self.ledger.use(lambda store: store.record([], 1.0)))

    def close(self) -> None:
        self.store.going.set()
        self.ledger.close()


def test_a_failing_store_is_left_alone_for_a_moment(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure is told in the log, the others to the clients alone; and so is its recovery."""
    bench = Bench()
    assert bench.record() == []
    bench.store.failing = True
    for _ in range(3):
        with pytest.raises(FeedbackUnavailable) as refusal:
            bench.record()
        assert dict(refusal.value.headers)[b"retry-after"] == b"1"
        assert "no room" not in refusal.value.detail
    assert bench.store.asked == 2
    bench.now += RETRY_S
    with pytest.raises(FeedbackUnavailable):
        bench.record()
    assert bench.store.asked == 3
    assert [record.message for record in caplog.records] == [
        "labels cannot be recorded, and classification goes on: no room"
    ]
    bench.store.failing = False
    bench.now += RETRY_S
    assert bench.record() == []
    assert [record.message for record in caplog.records][1:] == ["labels are recorded again"]
    bench.close()
    assert bench.store.closed


def test_a_store_that_cannot_be_used_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Not only when the first label comes."""
    bench = Bench(failing=True)
    assert "labels cannot be recorded" in caplog.text
    bench.close()


def test_what_is_told_of_the_tallies_is_a_second_old_at_most() -> None:
    """However often it is asked for, and by whichever way."""
    bench = Bench()
    bench.now += FRESH_S
    for _ in range(5):
        assert asyncio.run(bench.ledger.tallies()) == bench.ledger.tallies_soon() == {("pets", "one"): Tally(labels=1)}
    bench.now += FRESH_S
    assert bench.ledger.tallies_soon() == asyncio.run(bench.ledger.tallies()) == {("pets", "one"): Tally(labels=2)}
    bench.close()


def test_metrics_do_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none of it then; once it goes on there are."""
    monkeypatch.setattr("service.ledger.PATIENCE_S", 0.1)
    bench = Bench()
    bench.now += FRESH_S
    bench.store.going.clear()
    started = time.monotonic()
    assert [bench.ledger.tallies_soon() for _ in range(3)] == [None] * 3
    assert time.monotonic() - started < 2
    bench.store.going.set()
    while bench.ledger.tallies_soon() is None:
        pass
    # Those who asked in vain did not queue.
    assert bench.store.asked <= 2
    bench.store.failing = True
    bench.now += FRESH_S
    assert bench.ledger.tallies_soon() is None
    bench.close()


def test_nobody_waits_for_ever_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever labels or asks for drift is told so in time; once it goes on they are answered."""
    monkeypatch.setattr("service.ledger.LONGEST_S", 0.1)

    async def ask() -> None:
        bench = Bench()
        bench.now += FRESH_S
        bench.store.going.clear()
        for _ in range(2):
            with pytest.raises(FeedbackUnavailable):
                await bench.ledger.use(lambda store: store.record([], 1.0))
            with pytest.raises(FeedbackUnavailable):
                await bench.ledger.tallies()
        bench.store.going.set()
        monkeypatch.setattr("service.ledger.LONGEST_S", 10.0)
        assert await bench.ledger.use(lambda store: store.record([], 1.0)) == []
        # Those who waited no longer are not answered in vain.
        assert bench.store.asked == 2
        bench.close()

    asyncio.run(ask())


def test_no_more_than_so_many_wait() -> None:
    """Whoever comes then is told so at once; the event loop goes on all the while."""

    async def crowd() -> None:
        bench = Bench()
        bench.store.going.clear()
        waiting = [
            asyncio.create_task(bench.ledger.use(lambda store: store.record([], 1.0))) for _ in range(MOST_WAITING)
        ]
        await asyncio.sleep(0.05)
        with pytest.raises(FeedbackUnavailable, match="Too many labels wait"):
            await bench.ledger.use(lambda store: store.record([], 1.0))
        bench.store.going.set()
        assert await asyncio.gather(*waiting) == [[]] * MOST_WAITING
        assert await bench.ledger.use(lambda store: store.record([], 1.0)) == []
        bench.close()

    asyncio.run(crowd())


def test_what_goes_wrong_otherwise_is_no_matter_of_the_store() -> None:
    """It is raised as it is, and the store is asked again at once."""
    bench = Bench()

    def fail(store: Store) -> None:
        raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        asyncio.run(bench.ledger.use(fail))
    assert bench.record() == []
    bench.close()


def test_a_closed_ledger_is_told_politely() -> None:
    """To clients that come while the service ends."""
    bench = Bench()
    bench.close()
    with pytest.raises(NotReady):
        bench.record()
    assert bench.ledger.tallies_soon() is None
