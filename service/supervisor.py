"""Starts the workers of an instance, replaces those that end, and ends with them.

It is all that stays beside the workers and imports next to nothing, so it takes 14 MB. What it needs to know of the
settings the first worker tells it, which also finds what would keep the service from starting.

SIGTERM, SIGINT and SIGQUIT end the service when every request that was begun is answered; SIGHUP replaces all workers.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

# A worker that ended sooner may do so again: its successor waits for a moment.
STABLE_S, PAUSE_S = 10.0, 1.0
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

# Starts the worker of a number and returns its process id. The first is given a pipe to write the number of workers to.
Start = Callable[[int, int | None], int]


class Supervisor:
    """Keeps as many workers as are wanted, numbered from 1; a worker's successor gets its number."""

    def __init__(self, listening: socket.socket, start: Start) -> None:
        """`listening` is closed as soon as the service ends, lest clients wait for an answer that never comes."""
        self._listening = listening
        self._start = start
        # Where the first worker tells how many there shall be, until it has.
        self._told: list[int] = []
        # Of each worker that runs, by process id: its number and when it was started.
        self._workers: dict[int, tuple[int, float]] = {}
        self._wanted = 1
        self._status = 0
        self._not_before = 0.0
        self._signals: set[int] = set()
        self._woken, wake = os.pipe()
        for end in (self._woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in ENDING | {signal.SIGHUP, signal.SIGCHLD}:
            signal.signal(number, self._signalled)

    def run(self) -> int:
        """Returns when a signal has ended the service, or 1 where the first worker has found that it cannot start."""
        self._start_first()
        while self._wanted or self._workers:
            self._start_missing()
            self._wait()
            self._reap()
            self._obey()
        return self._status

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    @property
    def _missing(self) -> bool:
        """Whether a worker should be started: none beside the first before that has given its word."""
        return len(self._workers) < self._wanted and not self._told

    def _start_first(self) -> None:
        told, tell = os.pipe()
        os.set_inheritable(tell, True)
        self._start_one(tell)
        # That worker has the only end to write to: when it ends, the pipe does.
        os.close(tell)
        self._told.append(told)

    def _start_missing(self) -> None:
        while self._missing and time.monotonic() >= self._not_before:
            self._start_one()

    def _start_one(self, tell: int | None = None) -> None:
        taken = {number for number, _ in self._workers.values()}
        number = next(number for number in range(1, len(taken) + 2) if number not in taken)
        try:
            self._workers[self._start(number, tell)] = number, time.monotonic()
        except OSError as error:
            _say(f"worker {number} cannot be started ({error})")
            self._not_before = time.monotonic() + PAUSE_S

    def _wait(self) -> None:
        """Until a signal, a worker's end, the first worker's word, or the time to start a successor."""
        timeout = max(0.0, self._not_before - time.monotonic()) if self._missing else None
        readable, _, _ = select.select([self._woken, *self._told], [], [], timeout)
        if self._woken in readable:
            os.read(self._woken, 4096)
        if self._told and self._told[0] in readable:
            self._learn(os.read(self._told[0], 16))

    def _learn(self, word: bytes) -> None:
        os.close(self._told.pop())
        if not self._wanted:
            # A signal came first.
            return
        if word:
            self._wanted = int(word)
            _say(f"{self._wanted} workers on {_address(self._listening)} (Ctrl-C ends them)")
        else:
            # It has said why.
            self._wanted, self._status = 0, 1

    def _reap(self) -> None:
        for pid, status in _ended():
            if pid not in self._workers:
                # As the first process of a container this one inherits those that have lost their parent.
                continue
            number, started = self._workers.pop(pid)
            if self._missing:
                _say(f"worker {number} (process {pid}) ended {_how(status)}; another takes its place")
                if time.monotonic() - started < STABLE_S:
                    self._not_before = time.monotonic() + PAUSE_S
            elif os.WIFSIGNALED(status) and (self._status or (self._told and self._wanted)):
                # The first, which could not say why.
                _say(f"the first worker ended {_how(status)}")

    def _obey(self) -> None:
        signals, self._signals = self._signals, set()
        present = list(self._workers)
        if signals & ENDING and self._wanted:
            self._wanted = 0
            self._listening.close()
        elif signal.SIGHUP in signals and self._wanted and not self._told:
            for _ in range(self._wanted):
                self._start_one()
        else:
            return
        for pid in present:
            os.kill(pid, signal.SIGTERM)


def _ended() -> list[tuple[int, int]]:
    """Process id and status of children that have ended."""
    ended = []
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(child)
    except ChildProcessError:
        pass
    return ended


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"by signal {-code}" if code < 0 else f"with status {code}"


def _say(line: str) -> None:
    print(f"trueodds: {line}", file=sys.stderr, flush=True)


def start_worker(number: int, tell: int | None, *, listening: int, environment: dict[str, str]) -> int:
    """A process of service.launch, in a session of its own so that Ctrl-C reaches the supervisor alone."""
    command = [sys.executable, "-m", "service.launch", "--socket", str(listening), "--number", str(number)]
    if tell is not None:
        command += ["--tell", str(tell)]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(sys.executable, command, environment, file_actions=[nothing], setsid=True)
