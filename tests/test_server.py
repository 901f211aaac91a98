"""service.server: workers that share a listening socket share its connections evenly."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from service.board import Board
from service.protocol import Deadlines, Receive, Scope, Send
from service.server import Server

pytestmark = pytest.mark.slow

WORKERS = 3
# By how many connections a worker may be ahead of another.
UNEVEN = 3
# A machine that is busy with something else may hold a worker up once, hardly this often.
ATTEMPTS = 5


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Worker:
    """A server in a thread of its own."""

    def __init__(self, listening: socket.socket, board: Board) -> None:
        self.board = board
        self.server = Server(uvicorn.Config(application, log_config=None), Deadlines(), board)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 5
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    def stall(self, seconds: float) -> None:
        self._loop.call_soon_threadsafe(time.sleep, seconds)
        time.sleep(0.1)  # until it does

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self, listening: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.server.serve([listening]))
        self._loop.close()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as sock:
        yield sock


@pytest.fixture
def workers(listening: socket.socket, tmp_path: Path) -> Iterator[list[Worker]]:
    boards = [Board(tmp_path / "board", row + 1) for row in range(WORKERS)]
    started = [Worker(listening.dup(), board) for board in boards]
    time.sleep(0.6)  # until each has looked for the others
    yield started
    for worker in started:
        worker.stop()


@contextlib.contextmanager
def clients(listening: socket.socket, number: int) -> Iterator[list[socket.socket]]:
    """Connections that have each been answered once and stay open."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(listening.getsockname())) for _ in range(number)]
        for client in opened:
            client.settimeout(10)
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for client in opened:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        yield opened


def counts(workers: list[Worker]) -> list[int]:
    return [worker.board.connections for worker in workers]


@pytest.mark.parametrize("number", [3, 16, 64])
def test_connections_that_come_at_once_are_shared_evenly(
    listening: socket.socket, workers: list[Worker], number: int
) -> None:
    """None idles while another has them all, unless the machine lets it wait longer than the others' patience."""
    differences = []
    for _ in range(ATTEMPTS):
        with clients(listening, number):
            shares = counts(workers)
        assert sum(shares) == number
        differences.append(max(shares) - min(shares))
        if differences[-1] <= UNEVEN + number // 8:
            return
        time.sleep(0.5)
    pytest.fail(f"the worker with most connections had so many more than the one with fewest: {differences}")


def test_a_worker_that_stands_still_does_not_hold_up_the_others(
    listening: socket.socket, workers: list[Worker]
) -> None:
    """What it does not take, others take in its place, though they have more."""
    workers[0].stall(2.0)
    started = time.monotonic()
    with clients(listening, 8):
        assert time.monotonic() - started < 1.5
        assert workers[0].board.connections == 0


def test_connections_that_end_are_counted_down(listening: socket.socket, workers: list[Worker]) -> None:
    """So that new ones go where the old ones were."""
    with clients(listening, 6):
        pass
    deadline = time.monotonic() + 5
    while any(counts(workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counts(workers) == [0, 0, 0]


def test_no_descriptor_left_is_waited_out(
    listening: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that cannot be accepted now is accepted later, and the log says why it was late."""
    failures = iter([OSError(24, "Too many open files")] * 2)

    class Exhausted(socket.socket):
        def accept(self) -> Any:
            for failure in failures:
                raise failure
            return super().accept()

    worker = Worker(Exhausted(fileno=listening.dup().detach()), Board())
    try:
        with clients(listening, 1):
            assert "Too many open files" in caplog.text
    finally:
        worker.stop()


def test_a_worker_that_stops_leaves_its_share_to_the_others(listening: socket.socket, workers: list[Worker]) -> None:
    """Its idle connections are closed, and new ones go to those who are left."""
    with clients(listening, 6) as before:
        workers[0].stop()
        assert sum(map(_is_closed, before)) in (1, 2, 3)
        with clients(listening, 4):
            assert workers[1].board.connections + workers[2].board.connections == 4 + 6 - sum(map(_is_closed, before))


def _is_closed(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
