"""service.memory: the last answers are found by their ids in every worker, and nothing else is taken for one."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.answers import Row
from service.bundle import load
from service.errors import BadParameter
from service.memory import MOST_BYTES, Memories, Memory, Origin, Remembered
from service.slots import CHUNK, Layout
from tests.conftest import ROOT
from tests.test_bundle import write_bundle

ORIGIN = Origin("pets", "1", "a" * 64, "sha256:" + "b" * 64, ("cat", "dog", "owl"))


def row(seed: int = 0, classes: int = 3) -> Row:
    """An answer like no other."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=classes).astype(np.float32)
    order = (-logits).argsort(kind="stable")
    numbers = rng.random(2 + 3 * classes).astype(np.float32)
    numbers[1 + 2 * classes : -1] = logits
    return Row(order, numbers, bytes(rng.integers(0, 2, classes, np.uint8)), bool(seed % 2), abstain=False)


def same(found: Remembered | None, kept: Row) -> bool:
    return (
        found is not None
        and found.confidence == kept.numbers[1]
        and found.predicted == kept.order[0]
        and found.logits == kept.numbers[1 + 2 * len(kept.order) : -1].tobytes()
        and found.members == kept.members
        and found.is_ood == kept.is_ood
    )


class Workers:
    """Memories of some workers that share a folder."""

    def __init__(self, folder: Path | None, capacity: int = 100, number: int = 2, origin: Origin = ORIGIN) -> None:
        self.all = [Memories(capacity, folder, each + 1) for each in range(number)]
        self.own = [Memory(origin, capacity, folder, each + 1) for each in range(number)]
        for memories, memory in zip(self.all, self.own, strict=True):
            memories._own.append(memory)


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(tmp_path)


def test_every_worker_finds_what_any_has_answered(workers: Workers) -> None:
    """As it was answered, by whom and about when."""
    before = time.time_ns()
    for number, memory in enumerate(workers.own):
        memory.remember([row(number)], f"id{number}")
    for memories in workers.all:
        first, second, other = memories.find([("id0", 0), ("id1", 0), ("id2", 0)])
        assert same(first, row(0))
        assert same(second, row(1))
        assert other is None
        assert first is not None
        assert first.origin == ORIGIN
        assert before <= first.answered_ns <= time.time_ns()


def test_without_a_folder_a_worker_finds_its_own() -> None:
    """And forgets as the others do."""
    alone = Workers(None, 3, 1)
    (memories,), (memory,) = alone.all, alone.own
    for seed in range(5):
        memory.remember([row(seed)], f"id{seed}")
    found = memories.find([(f"id{seed}", 0) for seed in range(5)])
    assert found[:2] == [None, None]
    assert all(same(found[seed], row(seed)) for seed in (2, 3, 4))


def test_images_of_one_request_are_told_apart(workers: Workers) -> None:
    """By their index, which counts the files at fault too."""
    workers.own[0].remember([row(0), BadParameter("no image"), row(2)], "form")
    first, fault, third = workers.all[1].find([("form", 0), ("form", 1), ("form", 2)])
    assert same(first, row(0))
    assert fault is None
    assert same(third, row(2))


def test_of_two_answers_under_one_id_the_newer_counts(workers: Workers) -> None:
    """Of one worker or of two."""
    one, other = workers.own
    for seed, memory in enumerate((one, one, other, one, other, other)):
        memory.remember([row(seed)], "again")
        assert same(workers.all[0].find([("again", 0)])[0], row(seed))


def test_the_newest_of_one_worker_counts_though_the_clock_goes_back(tmp_path: Path) -> None:
    """Or stands."""
    times = iter([500, 500, 300, 900])
    memory = Memory(ORIGIN, 100, tmp_path, 1, lambda: next(times))
    for seed in range(4):
        memory.remember([row(seed)], "again")
        assert same(Memories(1, tmp_path).find([("again", 0)])[0], row(seed))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    capacity=st.integers(1, 3000) | st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]),
    answered=st.integers(0, 4500),
    restarts=st.lists(st.integers(0, 4500), max_size=2),
)
def test_exactly_the_last_are_remembered(
    capacity: int, answered: int, restarts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As many as shall be, though the worker is replaced meanwhile."""
    folder = tmp_path_factory.mktemp("ring")
    memory, kept = Memory(ORIGIN, capacity, folder, 1), row(1)
    for number in range(answered):
        if number in restarts:
            memory = Memory(ORIGIN, capacity, folder, 1)
        memory.remember([kept], str(number))
    found = Memories(1, folder).find([(str(number), 0) for number in range(answered)]) if answered else []
    assert [each is not None for each in found] == [answered - number <= capacity for number in range(answered)]


def test_a_successor_goes_on_and_knows_its_predecessors_answers(tmp_path: Path) -> None:
    """Also where the last answer was not wholly written."""
    memory = Memory(ORIGIN, 3, tmp_path, 1)
    for seed in range(4):
        memory.remember([row(seed)], f"id{seed}")
    # id3 is at place 0 by now; the next one, at place 1, breaks off.
    layout = Layout(3)
    at = CHUNK * 8 + layout.slot_bytes
    torn = b"\xff" * (layout.slot_bytes // 2)
    memory.buffer[at : at + len(torn)] = torn
    successor = Memory(ORIGIN, 3, tmp_path, 1)
    successor.remember([row(9)], "id9")
    found = Memories(1, tmp_path).find([(f"id{seed}", 0) for seed in (1, 2, 3, 9)])
    assert [each is not None for each in found] == [False, True, True, True]
    assert same(found[3], row(9))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0), bit=st.integers(0, 7))
def test_a_torn_answer_is_none(where: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever bit of it is not as it was written; its neighbours are found."""
    folder = tmp_path_factory.mktemp("torn")
    memory, layout = Memory(ORIGIN, 10, folder, 1), Layout(3)
    memory.remember([row(0), row(1), row(2)], "id")
    at = CHUNK * 8 + layout.slot_bytes + where % layout.slot_bytes
    memory.buffer[at] ^= 1 << bit
    before, torn, after = Memories(1, folder).find([("id", 0), ("id", 1), ("id", 2)])
    assert same(before, row(0))
    assert torn is None
    assert same(after, row(2))


def test_an_answer_of_before_a_reload_is_not_taken_for_one_of_after_it(tmp_path: Path) -> None:
    """Each is of the calibration that it was given under, though both are in one ring."""
    newer = replace(ORIGIN, version="2", calibration="sha256:" + "c" * 64)
    for origin, name in ((ORIGIN, "old"), (newer, "new")):
        Memory(origin, 100, tmp_path, 1).remember([row(0)], name)
    assert len(list(tmp_path.glob("*.answers"))) == 1
    old, new = Memories(1, tmp_path).find([("old", 0), ("new", 0)])
    assert old is not None
    assert new is not None
    assert (old.origin, new.origin) == (ORIGIN, newer)
    next(tmp_path.glob(f"{ORIGIN.tag.hex()}.*")).unlink()
    assert Memories(1, tmp_path).find([("old", 0)]) == [None]


def test_models_of_other_sizes_have_rings_of_their_own(tmp_path: Path) -> None:
    """Also a model of the same name with more classes."""
    wide = replace(ORIGIN, labels=tuple(map(str, range(1000))))
    Memory(ORIGIN, 100, tmp_path, 1).remember([row(0)], "narrow")
    Memory(wide, 100, tmp_path, 1).remember([row(1, 1000)], "wide")
    narrow, found = Memories(1, tmp_path).find([("narrow", 0), ("wide", 0)])
    assert same(narrow, row(0))
    assert same(found, row(1, 1000))


def test_a_ring_is_bounded_in_bytes(tmp_path: Path) -> None:
    """Fewer large answers are remembered."""
    huge = replace(ORIGIN, labels=tuple(map(str, range(20_000))))
    memory = Memory(huge, 65_536, tmp_path, 1)
    assert memory.capacity == MOST_BYTES // Layout(20_000).slot_bytes < 700


def test_nothing_is_remembered_where_nothing_shall_be(tmp_path: Path) -> None:
    """And nothing is written."""
    memories = Memories(0, tmp_path, 1)
    assert memories.of(load(write_bundle(tmp_path / "bundles"))) is None
    assert list(tmp_path.glob("*.answers")) == list(tmp_path.glob("*.origin")) == []


def test_a_file_grows_with_what_is_answered(tmp_path: Path) -> None:
    """A model that nobody asks takes no room."""
    memory = Memory(ORIGIN, 65_536, tmp_path, 1)
    assert list(tmp_path.glob("*.answers")) == []
    memory.remember([row(0)], "id")
    (file,) = tmp_path.glob("*.answers")
    assert file.stat().st_size == Layout(3).chunk_bytes < 100_000


LIMITED = """
import resource, sys
from pathlib import Path
from tests.test_memory import ORIGIN, row
from service.memory import Memories, Memory
from service.slots import Layout
folder, chunks = Path(sys.argv[1]), int(sys.argv[2])
memory = Memory(ORIGIN, 65536, folder, 1)
limit = chunks * Layout(3).chunk_bytes + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
kept = row(1)
for number in range(5000):
    memory.remember([kept], str(number))
found = Memories(1, folder).find([(str(number), 0) for number in range(5000)])
print([number for number, each in enumerate(found) if each] == list(range(5000 - chunks * 1024, 5000)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [0, 2])
def test_on_a_full_disk_fewer_are_remembered(chunks: int, tmp_path: Path) -> None:
    """As many as there was room for, the last ones; at worst none, and that is all that happens."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(chunks)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "True\n"), told.stderr


def _answer_for_ever(folder: Path) -> None:
    memory, rows = Memory(ORIGIN, 2000, folder, 1), [row(seed) for seed in range(50)]
    number = 0
    while True:
        memory.remember([rows[number % 50]], str(number))
        number += 1


@pytest.mark.slow
def test_what_is_read_while_it_is_written_is_whole_or_nothing(tmp_path: Path) -> None:
    """Even of a writer that is killed amidst; what its successor then writes is found."""
    rows = [row(seed) for seed in range(50)]
    hits = 0
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        writer = context.Process(target=_answer_for_ever, args=(tmp_path,))
        writer.start()
        try:
            until = time.monotonic() + 30
            while hits < 20_000 and time.monotonic() < until:
                found = Memories(1, tmp_path).find([(str(number), 0) for number in range(0, 200_000, 100)])
                known = [(number * 100, each) for number, each in enumerate(found) if each]
                assert all(same(each, rows[number % 50]) for number, each in known)
                hits += len(known)
                if len(known) > 15:
                    break
        finally:
            assert writer.pid
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    assert hits
    Memory(ORIGIN, 2000, tmp_path, 1).remember([row(7)], "after")
    assert same(Memories(1, tmp_path).find([("after", 0)])[0], row(7))
