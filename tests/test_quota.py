"""service.quota: a rate, a burst and a number under way hold for all workers together."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from service.errors import NotReady, TooManyRequests
from service.quota import SECOND_NS, Meter, Meters, Quota
from service.subjects import SubjectMeter

ROWS = 16


def let_in(meters: Iterable[Meter | SubjectMeter]) -> int:
    """How many of these let a request in, which ends at once."""
    taken = 0
    for meter in meters:
        try:
            meter.take()
        except TooManyRequests:
            continue
        meter.leave()
        taken += 1
    return taken


class Workers:
    """Some meters of one name, as those of several workers, and a clock."""

    def __init__(self, quota: Quota, folder: Path, number: int = 3) -> None:
        self.now = 1000 * SECOND_NS
        path = folder / "one.quota"
        self.meters = [Meter.shared(quota, path, row, ROWS, lambda: self.now) for row in range(1, number + 1)]

    def let_in(self, times: int) -> int:
        """Of so many requests, one worker after the other."""
        return let_in(self.meters[number % len(self.meters)] for number in range(times))


def test_a_burst_and_then_the_rate(tmp_path: Path) -> None:
    """Whichever workers are asked."""
    workers = Workers(Quota.of(4, 10, None), tmp_path)
    assert workers.let_in(30) == 10
    workers.now += SECOND_NS
    assert workers.let_in(30) == 4
    workers.now += SECOND_NS // 4
    assert workers.let_in(30) == 1
    workers.now += 3600 * SECOND_NS
    assert workers.let_in(30) == 10


def test_a_new_worker_knows_what_was_taken(tmp_path: Path) -> None:
    """It opens no new bucket."""
    workers = Workers(Quota.of(1, 5, None), tmp_path)
    assert workers.let_in(9) == 5
    successor = Meter.shared(workers.meters[0].quota, tmp_path / "one.quota", 9, ROWS, lambda: workers.now)
    with pytest.raises(TooManyRequests):
        successor.take()


def test_what_is_told_of_the_limit(tmp_path: Path) -> None:
    """What is left, when all is there again, and when to come back."""
    workers = Workers(Quota.of(0.5, 2, 7), tmp_path, 1)
    (meter,) = workers.meters
    policy = b'ratelimit-policy: "rate";q=2;w=4, "concurrent";q=7;qu="concurrent-requests"\r\n'
    assert meter.take() == policy + b'ratelimit: "rate";r=1;t=2\r\n'
    assert meter.take() == policy + b'ratelimit: "rate";r=0;t=4\r\n'
    workers.now += SECOND_NS // 2
    with pytest.raises(TooManyRequests) as refusal:
        meter.take()
    assert dict(refusal.value.headers)[b"retry-after"] == b"2"
    workers.now += 3 * SECOND_NS // 2
    meter.take()


def test_one_taken_back_was_never_there(tmp_path: Path) -> None:
    """As of a request that takes another way."""
    meter = Workers(Quota.of(1, 1, 1), tmp_path, 1).meters[0]
    for _ in range(3):
        meter.take()
        meter.take_back()
    meter.take()
    with pytest.raises(TooManyRequests):
        meter.take()


def test_those_under_way_are_those_of_all(tmp_path: Path) -> None:
    """Each that ends makes room for one, on any worker."""
    one, other = Workers(Quota.of(None, None, 3), tmp_path, 2).meters
    for meter in (one, other, one):
        meter.take()
    for meter in (one, other):
        with pytest.raises(TooManyRequests):
            meter.take()
    other.leave()
    one.take()


def test_a_worker_that_was_killed_takes_no_room(tmp_path: Path) -> None:
    """Though nobody has its number any more."""
    quota, path = Quota.of(None, None, 1), tmp_path / "one.quota"
    pid = os.fork()
    if not pid:
        Meter.shared(quota, path, 7, ROWS).take()
        os._exit(0)
    os.waitpid(pid, 0)
    Meter.shared(quota, path, 1, ROWS).take()


def test_a_changed_quota_keeps_what_was_measured(tmp_path: Path) -> None:
    """As when the key file is read again."""
    meters = Meters(tmp_path, 1)
    assert meters.of("free", Quota()) is None
    meter = meters.of("one", Quota.of(None, None, 1))
    assert meter is not None
    meter.take()
    assert meters.of("one", Quota.of(None, None, 2)) is meter
    meter.take()
    with pytest.raises(TooManyRequests):
        meter.take()


def test_limits_that_cannot_be_kept_let_nobody_in(tmp_path: Path) -> None:
    """As on a full disk; when there is room they are kept."""
    folder = tmp_path / "later"
    meters = Meters(folder, 1)
    with pytest.raises(NotReady):
        meters.of("one", Quota.of(1, 1, None))
    folder.mkdir()
    assert meters.of("one", Quota.of(1, 1, None))


def test_one_at_a_time_is_one_though_two_come_together(tmp_path: Path) -> None:
    """Whoever entered and is told to come back has left."""
    one, other = Workers(Quota.of(None, None, 1), tmp_path, 2).meters
    one.take()
    for _ in range(3):
        with pytest.raises(TooManyRequests):
            other.take()
    one.leave()
    other.take()
