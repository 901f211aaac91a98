"""Starts the workers of an instance, replaces those that end, and ends with them.

It is all that stays beside the workers and imports next to nothing, so it takes 14 MB. What it needs to know of the
settings the first worker tells it, which also finds what would keep the service from starting.

SIGTERM ends the service when every request that was begun is answered, SIGINT and SIGQUIT too, but without the time in
which readiness tells of it; SIGHUP replaces all workers. A worker that stands still is killed, and one that ends gets a
successor.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

# A worker that ended sooner may do so again: its successor waits for a moment, and for twice as long each time.
STABLE_S, PAUSE_S, LONGEST_PAUSE_S = 10.0, 1.0, 3.0
# Workers are looked at so often, and one without a sign of life is killed at the sixth look. Looks are counted rather
# than seconds: after the machine was suspended no worker is suspected.
LOOK_S, LOOKS = 1.0, 6
# As service.board has it.
UNBORN, STUCK = 0, (1 << 32) - 1
# What clients are told while there is no worker and none is about to be started.
NOBODY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 3\r\n"
    b"content-length: 65\r\nconnection: close\r\n\r\n"
    b'{"type":"about:blank","title":"Service Unavailable","status":503}'
)
# A worker that was told to end is killed so long after it should have begun to.
END_S = 26.0
# How long a line may take to be written; the reader of the log may stand still.
SAYING_S = 0.2
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

# Starts the worker of a number and returns its process id. The first is given a pipe to write the number of workers to.
Start = Callable[[int, int | None], int]
# The pulse of the worker of a number: UNBORN, STUCK, or what changes as long as it is well.
Pulse = Callable[[int], int]


class Worker:
    """One that runs. Not a dataclass: the module for these would take a megabyte."""

    def __init__(self, number: int, pulse: int) -> None:
        self.number = number
        self.started = time.monotonic()
        self.killed = False
        # When to kill it if it still runs.
        self.kill_at: float | None = None
        # What was seen last, for how many looks, and whether it has been seen to change.
        self._pulse, self._looks, self._alive = pulse, 0, False

    def looked_at(self, pulse: int) -> bool:
        """Whether it should be killed."""
        if pulse != self._pulse:
            # Before the first change it is what a predecessor left.
            self._pulse, self._alive, self._looks = pulse, pulse != UNBORN, 0
        else:
            self._looks += self._alive
        return self._alive and (pulse == STUCK or self._looks >= LOOKS)


class Supervisor:
    """Keeps as many workers as are wanted, numbered from 1; a worker's successor gets its number."""

    def __init__(self, listening: socket.socket, start: Start, pulse: Pulse = lambda number: UNBORN) -> None:
        """`listening` is closed as soon as the service ends, lest clients wait for an answer that never comes."""
        self._listening = listening
        self._start = start
        # Where the first worker tells how many there shall be, until it has.
        self._told: list[int] = []
        self._pulse = pulse
        # By process id.
        self._workers: dict[int, Worker] = {}
        self._drain_s = 0.0
        self._look_at = 0.0
        self._pause_s = PAUSE_S
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
            self._look()
        return self._status

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    @property
    def _missing(self) -> bool:
        """Whether a worker should be started: none beside the first before that has given its word."""
        return len(self._workers) < self._wanted and not self._told

    @property
    def _refuses(self) -> bool:
        """Whether there is no worker, nor will be one for a while: it is not the first that ended at once."""
        return self._missing and not self._workers and self._pause_s > 2 * PAUSE_S

    def _refuse(self) -> None:
        """Answer a client in the workers' place."""
        with suppress(OSError):
            self._listening.setblocking(False)
            client, _ = self._listening.accept()
            with client:
                # Closed with something unread, the connection would be reset and the answer lost.
                client.settimeout(0.05)
                with suppress(OSError):
                    client.recv(65536)
                client.send(NOBODY)

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
        taken = {worker.number for worker in self._workers.values()}
        number = next(number for number in range(1, len(taken) + 2) if number not in taken)
        try:
            # Looked at before it starts, for then it is no longer its predecessor's.
            worker = Worker(number, self._pulse(number))
            self._workers[self._start(number, tell)] = worker
        except OSError as error:
            _say(f"worker {number} cannot be started ({error})")
            self._not_before = time.monotonic() + PAUSE_S

    def _wait(self) -> None:
        """Until a signal, a worker's end, the first worker's word, or the time to look at them or start a successor."""
        until = min(self._look_at, self._not_before) if self._missing else self._look_at
        timeout = min(LOOK_S, max(0.0, until - time.monotonic()))
        refusing = [self._listening.fileno()] if self._refuses else []
        readable, _, _ = select.select([self._woken, *self._told, *refusing], [], [], timeout)
        if set(refusing) & set(readable):
            self._refuse()
        if self._woken in readable:
            os.read(self._woken, 4096)
        if self._told and self._told[0] in readable:
            self._learn(os.read(self._told[0], 64))

    def _learn(self, word: bytes) -> None:
        os.close(self._told.pop())
        if not self._wanted:
            # A signal came first.
            return
        if word:
            wanted, _, drain_s = word.partition(b" ")
            self._wanted, self._drain_s = int(wanted), float(drain_s or 0)
            _say(f"{self._wanted} workers on {_address(self._listening)} (Ctrl-C ends them)")
        else:
            # It has said why.
            self._wanted, self._status = 0, 1

    def _reap(self) -> None:
        for pid, status in _ended():
            if pid not in self._workers:
                # As the first process of a container this one inherits those that have lost their parent.
                continue
            worker = self._workers.pop(pid)
            if self._missing:
                _say(f"worker {worker.number} (process {pid}) ended {_how(status)}; another takes its place")
                self._pause_after(worker)
            elif os.WIFSIGNALED(status) and (self._status or (self._told and self._wanted)):
                # The first, which could not say why.
                _say(f"the first worker ended {_how(status)}")

    def _pause_after(self, worker: Worker) -> None:
        now = time.monotonic()
        if worker.killed:
            return
        if now - worker.started >= STABLE_S:
            self._pause_s = PAUSE_S
        elif now >= self._not_before:
            # Of several that end at once the first counts.
            self._not_before = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _look(self) -> None:
        """Kill those that stand still and those that do not end."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        for pid, worker in self._workers.items():
            still = worker.looked_at(self._pulse(worker.number))
            if not worker.killed and (still or (worker.kill_at is not None and now >= worker.kill_at)):
                worker.killed = True
                _say(f"worker {worker.number} (process {pid}) {'stands still' if still else 'does not end'}: killed")
                os.kill(pid, signal.SIGKILL)

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
        drains = signal.SIGTERM in signals and not self._wanted
        for pid in present:
            self._workers[pid].kill_at = time.monotonic() + END_S + (self._drain_s if drains else 0.0)
            os.kill(pid, signal.SIGTERM if drains else signal.SIGUSR1)


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


_writing: list[threading.Thread] = []


def _say(line: str) -> None:
    """To standard error; while the log cannot be written, lines are lost and nothing waits for it."""
    if _writing and _writing[-1].is_alive():
        return
    _writing[:] = [threading.Thread(target=_write, args=(f"trueodds: {line}\n".encode(),), daemon=True)]
    _writing[-1].start()
    _writing[-1].join(SAYING_S)


def _write(line: bytes) -> None:
    with suppress(OSError):
        os.write(2, line)


def start_worker(number: int, tell: int | None, *, listening: int, life: int, environment: dict[str, str]) -> int:
    """A process of service.launch, in a session of its own so that Ctrl-C reaches the supervisor alone."""
    command = [
        sys.executable,
        "-m",
        "service.launch",
        "--socket",
        str(listening),
        "--number",
        str(number),
        "--life",
        str(life),
    ]
    if tell is not None:
        command += ["--tell", str(tell)]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(sys.executable, command, environment, file_actions=[nothing], setsid=True)
