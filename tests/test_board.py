"""service.board: workers see each other's numbers, and only those of workers that are there."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.board import ROWS, Board
from tests.conftest import ROOT

WORKER = """
import sys
from pathlib import Path
from service.board import Board

board = Board(Path(sys.argv[1]), int(sys.argv[2]))
for line in sys.stdin:
    command, _, number = line.strip().partition(" ")
    match command:
        case "connections": board.connections = int(number)
        case "images": board.add_images(int(number))
        case "refresh": board.refresh()
        case "leave": board.leave()
    own, *others = board.connections_of_all()
    print(min(others, default=own), board.others_idle, flush=True)
"""


def fewest(board: Board) -> int:
    """The connections of the other worker with the fewest; its own where there is none."""
    own, *others = board.connections_of_all()
    assert own == board.connections
    return min(others, default=own)


@pytest.fixture(autouse=True)
def idle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without work counts as idle, not as between two images; one test asks for the difference."""
    monkeypatch.setattr("service.board.IDLE_S", 0.0)


class Worker:
    """A board in a process of its own, which does as it is told."""

    def __init__(self, path: Path, row: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(row)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, command: str) -> tuple[int, bool]:
        """Returns the fewest connections of the others, and whether they are idle, as the worker then sees them."""
        assert self._process.stdin
        assert self._process.stdout
        print(command, file=self._process.stdin, flush=True)
        fewest, idle = self._process.stdout.readline().split()
        return int(fewest), idle == "True"

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workers.board"


def test_without_a_file_there_are_no_others() -> None:
    """A lone worker has the fewest connections and idle neighbours; two without a file know nothing of each other."""
    board, stranger = Board(), Board(row=1)
    stranger.add_images(1)
    stranger.connections = 3
    board.connections = 7
    board.add_images(2)
    board.refresh()
    assert (board.connections, fewest(board), board.others_idle) == (7, 7, True)


def test_workers_that_start_later_are_seen_after_a_refresh(path: Path) -> None:
    """Those before at once."""
    first = Board(path, 1)
    first.connections = 9
    second = Board(path, 2)
    second.add_images(1)
    assert fewest(second) == 9
    assert (fewest(first), first.others_idle) == (9, True)
    first.refresh()
    assert (fewest(first), first.others_idle) == (0, False)


def test_fewest_connections_are_the_fewest_of_the_others(path: Path) -> None:
    """A worker's own number does not count, and a change of another's is seen without a refresh."""
    boards = [Board(path, row) for row in range(3)]
    for board, number in zip(boards, (2, 5, 8), strict=True):
        board.refresh()
        board.connections = number
    assert [fewest(board) for board in boards] == [5, 2, 2]
    boards[0].connections = 6
    assert [fewest(board) for board in boards] == [5, 6, 5]


def test_others_are_idle_when_none_of_them_has_an_image_in_hand(path: Path) -> None:
    """A worker's own images do not count; those of any other do, until the last of them is answered."""
    boards = [Board(path, row) for row in range(3)]
    for board in boards:
        board.refresh()
    boards[1].add_images(2)
    assert [board.others_idle for board in boards] == [False, True, False]
    boards[1].add_images(-1)
    assert not boards[0].others_idle
    boards[1].add_images(-1)
    assert all(board.others_idle for board in boards)


def test_connections_are_no_images(path: Path) -> None:
    """A worker with open connections and nothing to do is idle."""
    first, second = Board(path, 1), Board(path, 2)
    first.connections = 1000
    assert second.others_idle


def test_the_file_may_only_be_read_by_its_owner(path: Path) -> None:
    """What a service does is nobody else's business."""
    Board(path, 1)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_row_beyond_the_file_is_one_inside(path: Path) -> None:
    """A worker's number may be anything; its neighbours stay what they are."""
    first, last = Board(path, 0), Board(path, ROWS - 1)
    wrapped = Board(path, ROWS + 1)
    wrapped.connections = 3
    assert fewest(wrapped) == 0
    first.refresh()
    last.connections = 7
    assert fewest(first) == 3


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_that_has_left_is_forgotten(path: Path, late: bool) -> None:
    """Also when the last of its connections and images end only after it has left."""
    first, second = Board(path, 1), Board(path, 2)
    first.connections, second.connections = 7, 2
    second.add_images(1)
    first.refresh()
    assert (fewest(first), first.others_idle) == (2, False)
    second.leave()
    if late:
        second.connections = 1
        second.add_images(-1)
        second.connections = 0
    first.refresh()
    assert (fewest(first), first.others_idle) == (7, True)


def test_a_worker_that_leaves_is_busy_until_its_last_image(path: Path) -> None:
    """Whoever has just left and was not missed yet seems neither idle nor the one with the fewest connections."""
    first, second = Board(path, 1), Board(path, 2)
    second.connections = 5
    second.add_images(3)
    first.refresh()
    second.leave()
    assert (fewest(first), first.others_idle) == (5, False)
    second.add_images(-3)
    assert first.others_idle


class Workers(RuleBasedStateMachine):
    """Workers of one file that start, work, are killed and leave, and a plain model of them."""

    ROWS = st.integers(0, 3)

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "workers.board"
        self.boards: dict[int, Board] = {}
        # By row, of those whose row is in use: connections and images.
        self.numbers: dict[int, list[int]] = {}
        # Whom each worker has seen.
        self.seen: dict[int, set[int]] = {}

    @rule(row=ROWS)
    def start(self, row: int) -> None:
        """In place of whoever was killed in this row, too."""
        self.boards[row] = Board(self.path, row)
        self.numbers[row] = [0, 0]
        self.seen[row] = self.numbers.keys() - {row}

    @rule(row=ROWS, connections=st.integers(0, 9), images=st.integers(0, 9))
    def work(self, row: int, connections: int, images: int) -> None:
        if row in self.boards:
            self.boards[row].connections = connections
            self.boards[row].add_images(images - self.numbers[row][1])
            self.numbers[row] = [connections, images]

    @rule(row=ROWS)
    def refresh(self, row: int) -> None:
        if row in self.boards:
            self.boards[row].refresh()
            self.seen[row] = self.numbers.keys() - {row}

    @rule(row=ROWS)
    def leave(self, row: int) -> None:
        if row in self.boards:
            self.boards[row].connections = 0
            self.boards[row].add_images(-self.numbers[row][1])
            self.boards.pop(row).leave()
            del self.numbers[row]

    @rule(row=ROWS)
    def kill(self, row: int) -> None:
        """Its numbers stay."""
        self.boards.pop(row, None)

    @invariant()
    def seen_by_each(self) -> None:
        for row, board in self.boards.items():
            others = [self.numbers.get(other, [0, 0]) for other in self.seen[row]]
            assert board.connections == self.numbers[row][0]
            assert fewest(board) == min((connections for connections, _ in others), default=board.connections)
            assert board.others_idle == (not any(images for _, images in others))

    def teardown(self) -> None:
        self.folder.cleanup()


Workers.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestWorkers = Workers.TestCase


def test_processes_see_each_other_and_a_successor_resets_the_row_of_one_that_was_killed(path: Path) -> None:
    """What was in hand in a worker that died is nobody's once another takes its place."""
    with Worker(path, 1) as first, Worker(path, 2) as second:
        first.tell("connections 4")
        first.tell("images 3")
        assert second.tell("refresh") == (4, False)
        first.kill()
        assert second.tell("refresh") == (4, False), "nobody can know yet"
        with Worker(path, 1) as successor:
            assert successor.tell("connections 1") == (0, True)
            assert second.tell("connections 9") == (1, True)
            assert successor.tell("refresh") == (9, True)
            second.tell("leave")
            assert successor.tell("refresh") == (1, True)


def test_a_worker_between_two_images_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only after IDLE_S without an image do others have its core to themselves."""
    monkeypatch.setattr("service.board.IDLE_S", 0.1)
    first, second = (Board(tmp_path / "board", row) for row in (1, 2))
    first.refresh()
    idle = [first.others_idle]
    second.add_images(1)
    second.add_images(-1)
    idle.append(first.others_idle)
    time.sleep(0.15)
    idle.append(first.others_idle)
    assert idle == [True, False, True]
