"""service.supervisor: workers are started, replaced and ended; what it imports stays little."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

# A supervisor whose workers write their number and process id down, and then beat.
PROGRAM = """
import os, pathlib, socket, sys, time
from service.board import Board, Pulses
from service.supervisor import Supervisor

folder, wanted = pathlib.Path(sys.argv[1]), sys.argv[2].encode()
board = folder / "board"

def start(number, tell):
    if pid := os.fork():
        return pid
    import signal
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    if tell is not None:
        if wanted == b"none":
            os._exit(1)
        if wanted == b"killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / "busy").exists():
            time.sleep(4)
        os.write(tell, wanted + b" 0 2 http://here")
        os.close(tell)
    if (folder / "broken").exists():
        os._exit(3)
    (folder / f"{number}-{os.getpid()}").touch()
    if (folder / "hanging").exists():
        time.sleep(60)
    mine = Board(board, number)
    for _ in range(600):
        mine.beat()
        time.sleep(0.1)

sys.exit(Supervisor([socket.create_server(("127.0.0.1", 0))], start, Pulses(board).of).run())
"""


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self._folder = folder

    def workers(self, number: int) -> dict[int, int]:
        """Process ids by number of the workers that live, as soon as there are so many of them."""
        deadline = time.monotonic() + 10
        while len(living := self._living()) != number and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(living) == number
        return living

    def break_workers(self, how: str = "broken") -> None:
        """Those that start from now on end at once, or are "hanging" before they beat."""
        (self._folder / how).touch()

    def mend_workers(self, how: str = "broken") -> None:
        (self._folder / how).unlink()

    def log(self) -> str:
        """What the supervisor has said, now that it ends."""
        self.process.terminate()
        return self.process.communicate(timeout=10)[1]

    def started(self) -> list[int]:
        """Process ids of all workers there ever were."""
        return [int(path.name.split("-")[1]) for path in self._folder.glob("*-*")]

    def _living(self) -> dict[int, int]:
        """Zombies do not live."""
        found = {}
        for path in self._folder.glob("*-*"):
            number, pid = map(int, path.name.split("-"))
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists() and ") Z " not in stat.read_text():
                found[number] = pid
        return found


@contextmanager
def supervised(folder: Path, wanted: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), wanted], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Running(process, folder)
    finally:
        process.terminate()
        process.communicate(timeout=10)


def wait_for(true: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.02)


def test_as_many_are_started_as_the_first_says(tmp_path: Path) -> None:
    """Numbered from 1."""
    with supervised(tmp_path, "3") as running:
        assert set(running.workers(3)) == {1, 2, 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_workers_and_supervisor(tmp_path: Path, number: int) -> None:
    """With status 0, and nothing is left."""
    with supervised(tmp_path, "2") as running:
        running.workers(2)
        running.process.send_signal(number)
        assert running.process.wait(10) == 0
        running.workers(0)


def test_a_first_worker_that_ends_without_a_word_ends_it_all(tmp_path: Path) -> None:
    """It has said what is wrong: the supervisor adds nothing but a status, and starts no other."""
    with supervised(tmp_path, "none") as running:
        assert running.process.wait(10) == 1
        assert running.process.stderr is not None
        assert not running.process.stderr.read()
        running.workers(0)


def test_a_first_worker_that_is_killed_is_told(tmp_path: Path) -> None:
    """It could not say why itself; for want of memory, for one."""
    with supervised(tmp_path, "killed") as running:
        assert running.process.wait(10) == 1
        assert running.process.stderr is not None
        assert "by signal 9" in running.process.stderr.read()


def test_a_worker_that_is_killed_gets_a_successor_of_its_number(tmp_path: Path) -> None:
    """The others stay."""
    with supervised(tmp_path, "2") as running:
        before = running.workers(2)
        os.kill(before[1], signal.SIGKILL)
        running.workers(1)
        after = running.workers(2)
        assert after[1] != before[1]
        assert after[2] == before[2]


def test_workers_that_end_at_once_are_tried_again_after_a_pause(tmp_path: Path) -> None:
    """Not in a loop that takes a core; and they come back when what was wrong is mended."""
    with supervised(tmp_path, "1") as running:
        first = running.workers(1)[1]
        running.break_workers()
        os.kill(first, signal.SIGKILL)
        time.sleep(2.5)
        running.mend_workers()
        running.workers(1)
        running.process.terminate()
        _, log = running.process.communicate(timeout=10)
        assert 2 <= log.count("another takes its place") <= 4


def test_hangup_replaces_all_workers(tmp_path: Path) -> None:
    """By others, which are there before the old ones go."""
    with supervised(tmp_path, "2") as running:
        before = running.workers(2)
        running.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while set(after := running.workers(2)) != {3, 4} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(after) == {3, 4}
        assert not set(before.values()) & set(after.values())


def test_hangup_keeps_the_old_workers_where_a_new_one_does_not_start(tmp_path: Path) -> None:
    """One is tried, once; and the next hangup finds what was mended."""
    with supervised(tmp_path, "2") as running:
        before = running.workers(2)
        running.break_workers()
        running.process.send_signal(signal.SIGHUP)
        time.sleep(2.5)
        assert running.workers(2) == before
        running.mend_workers()
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: set(running.workers(2)) == {3, 4})
        log = running.log()
        assert log.count("the old workers go on") == 1
        assert "another takes its place" not in log


def test_hangup_keeps_the_old_workers_where_a_new_one_hangs(tmp_path: Path) -> None:
    """Until it was waited for long enough; an old one that ends meanwhile gets its successor."""
    with supervised(tmp_path, "2") as running:
        before = running.workers(2)
        running.break_workers("hanging")
        running.process.send_signal(signal.SIGHUP)
        running.workers(3)
        running.mend_workers("hanging")
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: running.workers(3)[1] != before[1])
        wait_for(lambda: set(running.workers(2)) == {1, 2}, 6)
        assert running.workers(2)[2] == before[2]
        log = running.log()
        assert log.count("does not start: killed") == 1
        assert log.count("the old workers go on") == 1


def test_a_hangup_in_the_midst_of_another_is_for_the_next(tmp_path: Path) -> None:
    """What was changed since the first new worker started is not lost."""
    with supervised(tmp_path, "1") as running:
        running.workers(1)
        for _ in range(2):
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.3)
        wait_for(lambda: len(running.started()) == 3)
        last = max(running.started())
        wait_for(lambda: list(running.workers(1).values()) == [last])
        time.sleep(2)
        assert max(running.started()) == last


def test_a_worker_that_hangs_before_its_first_beat_is_killed(tmp_path: Path) -> None:
    """After as many looks as seconds were told; the others stay."""
    with supervised(tmp_path, "2") as running:
        before = running.workers(2)
        running.break_workers("hanging")
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: running.workers(2)[1] != before[1])
        hanging = running.workers(2)[1]
        running.mend_workers("hanging")
        wait_for(lambda: running.workers(2)[1] != hanging, 6)
        assert running.workers(2)[2] == before[2]
        time.sleep(4)
        log = running.log()
        assert log.count("does not start: killed") == 1
        assert "stands still" not in log


def test_the_first_worker_may_take_its_time_to_look(tmp_path: Path) -> None:
    """It may compile what all need: it is timed from its word on."""
    (tmp_path / "busy").touch()
    with supervised(tmp_path, "1") as running:
        time.sleep(5)
        running.workers(1)
        assert "killed" not in running.log()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("service.__main__", {"asyncio", "bentoml", "dataclasses", "inspect", "numpy", "pydantic", "subprocess"}),
        ("service.launch", {"_bentoml_sdk", "_bentoml_impl", "bentoml", "opentelemetry", "rich", "starlette"}),
    ],
)
def test_what_costs_memory_is_not_imported(module: str, unwanted: set[str]) -> None:
    """By the supervisor, of which there is one in every instance, and by each worker."""
    code = f"import sys, {module}; print(*{sorted(unwanted)} & sys.modules.keys())".replace("*[", "*{").replace(
        "]", "}"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not found.stdout.split()
