"""service.subjects: each subject has its own limits, by all workers together, in a table that never grows."""

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from service.errors import NotReady, TooManyRequests
from service.quota import SECOND_NS, Quota
from service.subjects import PATIENCE_S, TABLE, Subjects
from tests.test_quota import let_in


class Workers:
    """The tables of some workers, which share a folder, and a clock."""

    def __init__(self, quota: Quota, folder: Path, places: int = 4, number: int = 3) -> None:
        self.now = 1000 * SECOND_NS
        self._next = 0
        self.tables = [Subjects(quota, folder, each, number, lambda: self.now, places) for each in range(1, number + 1)]

    def let_in(self, subject: str, times: int) -> int:
        """Of so many requests, one worker after the other."""
        first, self._next = self._next + 1, self._next + times
        return let_in(self.tables[number % len(self.tables)].of(subject) for number in range(first, first + times))


def test_each_has_its_own_limits(tmp_path: Path) -> None:
    """Whichever workers are asked."""
    workers = Workers(Quota.of(2, 5, None), tmp_path)
    assert [workers.let_in(name, 9) for name in ("a", "b", "c")] == [5, 5, 5]
    workers.now += SECOND_NS
    assert [workers.let_in(name, 9) for name in ("c", "a", "b")] == [2, 2, 2]


def test_a_place_is_anothers_when_it_tells_nothing_any_more(tmp_path: Path) -> None:
    """Any number of subjects, so they do not come at once; none finds what another did."""
    workers = Workers(Quota.of(1, 3, None), tmp_path)
    for number in range(40):
        assert workers.let_in(f"subject {number}", 5) == 3
        workers.now += SECOND_NS
        assert workers.let_in(f"subject {number}", 5) == 1
        workers.now += SECOND_NS


def test_a_newcomer_waits_where_every_place_is_anothers(tmp_path: Path) -> None:
    """It shares none, and has one as soon as there is one."""
    workers = Workers(Quota.of(1, 3, 2), tmp_path)
    assert [workers.let_in(str(number), 5) for number in range(4)] == [3] * 4
    for table in workers.tables:
        with pytest.raises(NotReady):
            table.of("new").take()
    assert [workers.let_in(str(number), 5) for number in range(4)] == [0] * 4
    workers.now += 3 * SECOND_NS
    assert workers.let_in("new", 5) == 3


def test_a_request_under_way_keeps_its_place(tmp_path: Path) -> None:
    """Also where there is no rate; when it is over, others may have it, and the subject another."""
    workers = Workers(Quota.of(None, None, 2), tmp_path)
    meters = [workers.tables[number % 3].of(str(number)) for number in range(4)]
    for meter in meters:
        assert meter.take() == b'ratelimit-policy: "concurrent";q=2;qu="concurrent-requests"\r\n'
    with pytest.raises(NotReady):
        workers.tables[0].of("new").take()
    workers.tables[1].of("0").take()
    with pytest.raises(TooManyRequests):
        workers.tables[2].of("0").take()
    meters[3].leave()
    workers.tables[0].of("new").take()
    with pytest.raises(NotReady):
        meters[3].take()
    meters[1].leave()
    meters[3].take()


def test_one_taken_back_was_never_there(tmp_path: Path) -> None:
    """As of a request that takes another way."""
    meter = Workers(Quota.of(1, 1, 1), tmp_path).tables[0].of("a")
    for _ in range(3):
        meter.take()
        meter.take_back()
    meter.take()
    with pytest.raises(TooManyRequests):
        meter.take()


def test_a_worker_that_was_killed_takes_no_room(tmp_path: Path) -> None:
    """Neither its successor's nor, where it has none, its subjects'."""
    quota = Quota.of(None, None, 1)
    pid = os.fork()
    if not pid:
        table = Subjects(quota, tmp_path, 7, 3, places=2)
        for subject in "ab":
            table.of(subject).take()
        os._exit(0)
    os.waitpid(pid, 0)
    workers = Workers(quota, tmp_path, 2)
    workers.tables[0].of("a").take()
    workers.tables[1].of("c").take()
    with pytest.raises(NotReady):
        workers.tables[0].of("b").take()
    Subjects(quota, tmp_path, 1, 3, places=2).of("b").take()


def test_a_worker_that_stands_still_with_the_lock_stops_nobody(tmp_path: Path) -> None:
    """Whom it knows it lets in, and a newcomer is told to come back."""
    table = Workers(Quota.of(9, 9, None), tmp_path, number=1).tables[0]
    table.of("known").take()
    lock = os.open(tmp_path / TABLE, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        table.of("known").take()
        with pytest.raises(NotReady):
            table.of("new").take()
        assert time.monotonic() - started < 10 * PATIENCE_S
    finally:
        os.close(lock)
    table.of("new").take()


def test_nobody_gets_more_though_all_come_at_once(tmp_path: Path) -> None:
    """Workers in threads, few places and many subjects: what entered has left; no subject has too many."""
    quota, most, under_way = Quota.of(None, None, 1), dict.fromkeys("abcdef", 0), dict.fromkeys("abcdef", 0)
    tables = Workers(quota, tmp_path, 4).tables
    guard = threading.Lock()

    def ask(table: Subjects) -> None:
        for number in range(600):
            subject = "abcdef"[number % 6]
            meter = table.of(subject)
            try:
                meter.take()
            except (TooManyRequests, NotReady):
                continue
            with guard:
                under_way[subject] += 1
                most[subject] = max(most[subject], under_way[subject])
            with guard:
                under_way[subject] -= 1
            meter.leave()

    threads = [threading.Thread(target=ask, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most.values()) == 1
    meters = [tables[0].of(subject) for subject in "abcd"]
    for meter in meters:
        meter.take()
