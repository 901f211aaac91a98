"""service.stores: a label is kept once, for good and under its own answer, whichever store keeps it."""

import dataclasses
import multiprocessing
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.drift import Tally
from service.errors import SettingError
from service.memory import Origin, Remembered
from service.stores import (
    STORES,
    Kept,
    Label,
    Outcome,
    Sampling,
    Store,
    StoreError,
    read,
    settle,
    store_at,
    tally_of,
    tally_text,
)
from service.stores.sqlite import SqliteStore
from tests.postgres import PASSWORD, Database, database

ORIGIN = Origin("pets", "1", "a" * 64, "sha256:b", ("cat", "dog", "owl"))


def answer(predicted: int = 0, confidence: float = 0.9, is_ood: bool = False, origin: Origin = ORIGIN) -> Remembered:
    """Whose set holds the predicted class alone."""
    logits = np.arange(3, dtype="<f4") + predicted
    members = bytes(number == predicted for number in range(3))
    return Remembered(origin, 1_700_000_000_000_000_000, confidence, predicted, logits.tobytes(), members, is_ood)


ANSWER = answer()


def label(
    request_id: str, text: str = "cat", sampling: Sampling = "random", of: Remembered | None = ANSWER, index: int = 0
) -> Label:
    return Label(request_id, index, text, sampling, of)


def recorded(outcomes: list[Outcome]) -> list[bool]:
    return [outcome.recorded for outcome in outcomes]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with database() as found:
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'state' / 'labels.sqlite3'}"
    found: Database = request.getfixturevalue("postgres")
    name = f"t{os.urandom(6).hex()}"
    found.run(f"CREATE DATABASE {name}")
    return found.url.removesuffix("postgres") + name


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    found = store_at(url)
    yield found
    found.close()


def test_a_label_is_recorded_once(store: Store) -> None:
    """The first stays: the same again and another find it, in the same call or a later one."""
    assert store.record([label("a"), label("a", "dog"), label("b")], 1.0) == [
        Outcome(True, Kept("pets", "sha256:b", "cat", "random")),
        Outcome(False, Kept("pets", "sha256:b", "cat", "random")),
        Outcome(True, Kept("pets", "sha256:b", "cat", "random")),
    ]
    again = store.record([label("b", "dog", "selected"), label("a", of=None), label("c", of=None)], 2.0)
    assert again == [
        Outcome(False, Kept("pets", "sha256:b", "cat", "random")),
        Outcome(False, Kept("pets", "sha256:b", "cat", "random")),
        Outcome(False, None),
    ]
    assert store.tallies()["pets", "sha256:b"].labels == 2


def test_images_and_models_are_told_apart(store: Store) -> None:
    """The same request id counts once for each image, and for each model that answered under it."""
    other = dataclasses.replace(ORIGIN, model="birds")
    labels = [label("a"), label("a", index=1), label("a", of=answer(origin=other))]
    assert recorded(store.record(labels, 1.0)) == [True] * 3
    assert recorded(store.record(labels, 1.0)) == [False] * 3
    assert {of: tally.labels for of, tally in store.tallies().items()} == {
        ("pets", "sha256:b"): 2,
        ("birds", "sha256:b"): 1,
    }


def test_what_is_kept_is_what_was_answered(url: str, store: Store) -> None:
    """Read from outside while the service runs: random answers in distribution, in the order of their labels."""
    newer = dataclasses.replace(ORIGIN, version="2", calibration="sha256:c")
    store.record(
        [
            label("a", "dog", of=answer(1)),
            label("b", "owl", of=answer(2, origin=newer)),
            label("c", sampling="selected"),
            label("d", of=answer(is_ood=True)),
            label("e", of=answer(origin=dataclasses.replace(ORIGIN, model="birds"))),
        ],
        5.0,
    )
    found = read(url, "pets")
    assert found.logits.dtype == np.float32
    assert found.logits.tolist() == [[1, 2, 3], [2, 3, 4]]
    assert found.labels.tolist() == [1, 2]
    assert found.calibrations.tolist() == ["sha256:b", "sha256:c"]
    assert found.answered.tolist() == [1_700_000_000.0] * 2
    assert read(url, "none").logits.shape == (0, 0)


def test_answers_of_another_number_of_classes_are_left_out(url: str, store: Store) -> None:
    """They fit into no array with those of the latest version."""
    wide = dataclasses.replace(ORIGIN, labels=("cat", "dog", "owl", "hen"), calibration="sha256:d")
    new = dataclasses.replace(answer(origin=wide), logits=bytes(16), members=b"\1\0\0\0")
    store.record([label("a"), label("b", "hen", of=new)], 5.0)
    found = read(url, "pets")
    assert (found.logits.shape, found.labels.tolist()) == ((1, 4), [3])


def test_only_random_answers_in_distribution_are_counted(store: Store) -> None:
    """By the calibration they were given under; the others are counted apart."""
    labels = [
        label("a", "cat"),
        label("b", "dog"),
        label("c", "dog", "selected"),
        label("d", "dog", of=answer(is_ood=True)),
        label("e", "dog", "selected", of=answer(is_ood=True)),
    ]
    store.record(labels[:2], 5.0)
    store.record(labels[2:], 6.0)
    expected = Tally().counted(0.9, True, True, 5.0).counted(0.9, False, False, 5.0)
    expected = dataclasses.replace(expected, selected=1, strange=2)
    assert store.tallies() == {("pets", "sha256:b"): expected}


def test_the_oldest_labels_go(url: str) -> None:
    """As many stay as shall; what they told of the model stays, too."""
    store = store_at(url, 10)
    for start in (0, 7, 14):
        store.record([label(str(number), of=answer(number % 3)) for number in range(start, start + 7)], 1.0)
    assert read(url, "pets").logits[:, 0].tolist() == [number % 3 for number in range(11, 21)]
    assert store.tallies()["pets", "sha256:b"].labels == 21
    # One that is gone is unknown, once its answer is, too.
    assert store.record([label("0", of=None), label("20", of=None)], 1.0)[0] == Outcome(False, None)
    store.close()


def test_all_of_a_call_is_kept_or_none(store: Store) -> None:
    """What fails amidst leaves nothing behind, and the store goes on."""
    broken = dataclasses.replace(answer(), logits=object())  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.record([label("a"), label("b", of=broken)], 1.0)
    assert recorded(store.record([label("a"), label("b")], 1.0)) == [True, True]
    assert store.tallies()["pets", "sha256:b"].labels == 2


def test_a_store_is_reopened(url: str, store: Store) -> None:
    """By the next worker, and by this one after `close`."""
    store.record([label("a")], 1.0)
    other = store_at(url)
    assert recorded(other.record([label("a"), label("b")], 1.0)) == [False, True]
    other.close()
    store.close()
    assert recorded(store.record([label("b"), label("c")], 1.0)) == [False, True]


def _record(url: str, worker: int, number: int) -> None:
    store = store_at(url)
    for start in range(0, number, 5):
        # Half of it all workers record, half of it this one alone.
        ids = [f"shared{n}" if n % 2 else f"{worker}-{n}" for n in range(start, start + 5)]
        store.record([label(each, of=answer(confidence=0.8)) for each in ids], 1.0)
    store.close()


@pytest.mark.slow
def test_several_workers_lose_and_double_nothing(url: str) -> None:
    """They open an empty store and write to it at the same time."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_record, args=(url, worker, 100)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = store_at(url)
    expected = Tally()
    for _ in range(4 * 50 + 50):
        expected = expected.counted(0.8, True, True, 1.0)
    assert store.tallies() == {("pets", "sha256:b"): expected}
    assert len(read(url, "pets").labels) == 250
    store.close()


def test_a_newer_store_is_left_alone(url: str, request: pytest.FixtureRequest) -> None:
    """The error names both versions and the remedy, each time; nothing is written."""
    store = store_at(url)
    store.record([label("a")], 1.0)
    store.close()
    if isinstance(store, SqliteStore):
        connection = sqlite3.connect(store.path)
        connection.execute("PRAGMA user_version = 2")
        connection.close()
    else:
        request.getfixturevalue("postgres").run("UPDATE trueodds_schema SET version = 2", url.rpartition("/")[2])
    for _ in range(2):
        with pytest.raises(StoreError, match=r"version 2 .* version 1 only; use a newer service"):
            store.record([label("b")], 1.0)
    store.close()


# SQLite alone.


def test_the_file_is_for_this_user_alone(tmp_path: Path) -> None:
    """And so is what SQLite keeps beside it."""
    store = store_at(f"sqlite://{tmp_path}/a%20b/labels.sqlite3")
    store.record([label("a")], 1.0)
    files = list((tmp_path / "a b").iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (tmp_path / "a b").stat().st_mode & 0o777 == 0o700
    store.close()


def test_what_is_promised_of_the_disk_is_asked_of_sqlite(tmp_path: Path) -> None:
    """A write-ahead log, and a commit that waits for the disk."""
    store = SqliteStore(f"sqlite://{tmp_path}/labels.sqlite3", 10)
    store.tallies()
    assert store._connection
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


def test_a_full_file_is_told_and_outlasted(tmp_path: Path) -> None:
    """SQLite's own error; what was there before stays, and when there is room it goes on."""
    store = SqliteStore(f"sqlite://{tmp_path}/labels.sqlite3", 10**6)
    store.record([label("a")], 1.0)
    assert store._connection
    store._connection.execute("PRAGMA max_page_count = 12")
    with pytest.raises(StoreError, match="full"):
        store.record([label(str(number)) for number in range(1000)], 1.0)
    assert recorded(store.record([label("a"), label("b")], 1.0)) == [False, True]
    store.close()


def test_a_locked_file_is_waited_for_and_then_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for ever."""
    monkeypatch.setattr("service.stores.sqlite.BUSY_S", 0.3)
    store = SqliteStore(f"sqlite://{tmp_path}/labels.sqlite3", 10)
    store.record([label("a")], 1.0)
    holder = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    releasing = threading.Timer(0.1, holder.execute, ["COMMIT"])
    releasing.start()
    assert recorded(store.record([label("b")], 1.0)) == [True]
    releasing.join()
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(StoreError, match="locked"):
        store.record([label("c")], 1.0)
    assert time.monotonic() - started < 3
    holder.close()
    store.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("no database" * 1000),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/full"),
    ],
    ids=["text", "folder", "device"],
)
def test_what_is_no_database_is_told(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """And is used once it is one."""
    path = tmp_path / "labels.sqlite3"
    spoil(path)
    store = store_at(f"sqlite://{path}")
    with pytest.raises(StoreError, match=re.escape(str(path))):
        store.record([label("a")], 1.0)
    path.rmdir() if path.is_dir() else path.unlink()
    assert recorded(store.record([label("a")], 1.0)) == [True]
    store.close()


def _record_until_killed(path: Path, told: Path) -> None:
    store = store_at(f"sqlite://{path}")
    with told.open("ab", buffering=0) as log:
        for number in range(100_000):
            store.record([label(f"{os.getpid()}-{number}")], 1.0)
            log.write(b"%d-%d\n" % (os.getpid(), number))


@pytest.mark.slow
def test_what_was_said_to_be_recorded_is(tmp_path: Path) -> None:
    """Though its writer is killed at any time; and labels and tally agree."""
    path, told = tmp_path / "labels.sqlite3", tmp_path / "told"
    context = multiprocessing.get_context("spawn")
    for seconds in (0.01, 0.05, 0.12):
        writer = context.Process(target=_record_until_killed, args=(path, told))
        writer.start()
        size = told.stat().st_size if told.exists() else 0
        while not told.exists() or told.stat().st_size == size:
            time.sleep(0.005)
        time.sleep(seconds)
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    store = store_at(f"sqlite://{path}")
    lines = told.read_text().splitlines()
    assert len(lines) > 3
    assert recorded(store.record([label(line) for line in lines], 1.0)) == [False] * len(lines)
    assert store.tallies()["pets", "sha256:b"].labels == len(read(f"sqlite://{path}", "pets").labels)
    store.close()


# PostgreSQL alone.


@pytest.mark.slow
def test_a_database_that_was_stopped_is_found_again(postgres: Database) -> None:
    """Meanwhile the store says so, without the password; nothing recorded is lost, and the first call succeeds."""
    store = store_at(postgres.url)
    store.record([label("before")], 1.0)
    postgres.stop()
    for _ in range(2):
        with pytest.raises(StoreError, match="PostgreSQL: ") as error:
            store.record([label("meanwhile")], 1.0)
        assert PASSWORD not in str(error.value)
        assert error.value.__cause__ is None
    postgres.start()
    assert recorded(store.record([label("before"), label("meanwhile")], 1.0)) == [False, True]
    postgres.stop()
    postgres.start()
    assert recorded(store.record([label("after")], 1.0)) == [True]
    store.close()


@pytest.mark.slow
def test_a_wrong_password_is_told_but_not_repeated(postgres: Database) -> None:
    """By PostgreSQL's own words."""
    store = store_at(postgres.url.replace(PASSWORD, "wr0ng-p4ssword"))
    with pytest.raises(StoreError, match="password authentication failed") as error:
        store.tallies()
    assert "wr0ng-p4ssword" not in str(error.value)
    store.close()


def test_nobody_there_is_told_soon() -> None:
    """A port where nothing listens."""
    pytest.importorskip("asyncpg")
    store = store_at("postgresql://u:s3cret@127.0.0.1:1/x")
    started = time.monotonic()
    with pytest.raises(StoreError) as error:
        store.tallies()
    assert time.monotonic() - started < 5
    assert "s3cret" not in str(error.value)
    store.close()


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where the setting asks for it."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    store_at("sqlite:///tmp/x").close()
    with pytest.raises(SettingError, match=r"pip install --require-hashes -r requirements/postgres\.lock"):
        store_at("postgresql://u:p@h/d")


# Both, without a store.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "mysql://u:s3cret@h/d",
        "postgresql//u:s3cret@h",
        "http://[s3cret",
        "sqlite://",
        "sqlite:///",
        "sqlite:",
        "sqlite://u:s3cret@host/path",
        "sqlite:///a?mode=ro",
        "sqlite:///a%00b",
    ],
)
def test_an_address_of_nothing_is_refused(url: str) -> None:
    """With the setting's name; what may be a password is not repeated."""
    with pytest.raises(SettingError, match="TRUEODDS_FEEDBACK") as error:
        store_at(url)
    assert "s3cret" not in str(error.value)


def test_every_scheme_has_a_store() -> None:
    """As the error says."""
    assert set(STORES) == {"sqlite", "postgresql", "postgres"}


@given(
    st.builds(
        Tally,
        labels=st.integers(0),
        confidence=st.floats(0, allow_infinity=False),
        z_sum=st.floats(allow_nan=False, allow_infinity=False),
        bets=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 7),
        since=st.none() | st.floats(0, 4e9),
        alarm_at=st.none() | st.integers(1),
    )
)
def test_a_tally_is_read_as_it_was_written(tally: Tally) -> None:
    """To the last bit: many workers go on with it, one after the other."""
    assert tally_of(tally_text(tally)) == tally


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["cat", "dog"]),
            st.sampled_from(["random", "selected"]),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.data(),
)
def test_portions_do_not_matter(told: list[tuple[str, str, Sampling, bool]], data: st.DataObject) -> None:
    """Labels that come together are settled as those that come one by one."""
    labels = [
        label(request_id, text, sampling, answer() if known else None) for request_id, text, sampling, known in told
    ]
    together = settle(labels, {}, {}, 1.0)
    known: dict[tuple[str, int], list[Kept]] = {}
    tallies: dict[tuple[str, str], Tally] = {}
    outcomes, rows = [], []
    for each in labels:
        alone = settle([each], known, tallies, 1.0)
        outcomes += alone.outcomes
        rows += alone.rows
        tallies |= alone.tallies
        known |= {(row[0], row[1]): [Kept(row[2], row[4], row[9], row[13])] for row in alone.rows}
    assert (together.outcomes, together.rows, together.tallies) == (outcomes, rows, tallies)
