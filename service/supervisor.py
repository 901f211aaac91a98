"""Starts the workers of an instance, replaces those that end, and ends with them.

It is all that stays beside the workers and imports next to nothing, so it takes 14 MB. What it needs to know of the
settings the first worker tells it, which also finds what would keep the service from starting.

SIGTERM ends the service when every request that was begun is answered, SIGINT and SIGQUIT too, but without the time in
which readiness tells of it. SIGHUP replaces all workers, as soon as one new worker serves: where that cannot, the old
ones stay. A worker that stands still is killed, and one that ends gets a successor.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

# A worker that ended sooner may do so again: its successor waits for a moment, and for twice as long each time.
STABLE_S, PAUSE_S, LONGEST_PAUSE_S = 10.0, 1.0, 3.0
# Workers are looked at so often, and one without a sign of life is killed at the sixth look. Looks are counted rather
# than seconds: after the machine was suspended no worker is suspected.
LOOK_S, LOOKS = 1.0, 6
# As service.board has it.
UNBORN, STUCK = 0, (1 << 32) - 1
# What clients are told, under an id, while there is no worker and none is about to be started.
NOBODY = b'{"type":"about:blank","title":"Service Unavailable","status":503,"request_id":"%b"}'
NOBODY_HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\nx-request-id: %b\r\nx-content-type-options: nosniff\r\nretry-after: 3\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
)
# A worker that was told to end is killed so long after it should have begun to.
END_S = 26.0
# How long a line may take to be written; the reader of the log may stand still.
SAYING_S = 0.2
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

# What those are waited for that are not timed.
NEVER = float("inf")

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
        self._pulse, self._looks, self.alive = pulse, 0, False

    def looked_at(self, pulse: int, start_looks: float) -> str:
        """Why it should be killed, if it should; `start_looks` are those in which it may start."""
        self._looks += 1
        if pulse != self._pulse:
            # Before the first change it is what a predecessor left.
            self._pulse, self.alive, self._looks = pulse, pulse != UNBORN, 0
        if self.alive:
            return "stands still" if pulse == STUCK or self._looks >= LOOKS else ""
        return "does not start" if self._looks >= start_looks else ""

    def is_timed_anew(self) -> None:
        self._looks = 0

    @property
    def ending(self) -> bool:
        """Whether it was told to end."""
        return self.kill_at is not None


class Supervisor:
    """Keeps as many workers as are wanted, numbered from 1; a worker's successor gets its number."""

    def __init__(self, listening: Sequence[socket.socket], start: Start, pulse: Pulse = lambda number: UNBORN) -> None:
        """`listening` are closed as soon as the service ends, lest clients wait for an answer that never comes."""
        self._listening = listening
        self._start = start
        # Where the first worker tells how many there shall be, until it has.
        self._told: list[int] = []
        self._pulse = pulse
        # By process id.
        self._workers: dict[int, Worker] = {}
        # One that shall show that new workers can serve, before the others are replaced too.
        self._scout: Worker | None = None
        self._drain_s = 0.0
        self._start_looks = NEVER
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
        staying = sum(not worker.ending and worker is not self._scout for worker in self._workers.values())
        return staying < self._wanted and not self._told

    @property
    def _refuses(self) -> bool:
        """Whether there is no worker, nor will be one for a while: it is not the first that ended at once."""
        return self._missing and not self._workers and self._pause_s > 2 * PAUSE_S

    def _refuse(self, listening: socket.socket) -> None:
        """Answer a client in the workers' place."""
        with suppress(OSError):
            listening.setblocking(False)
            client, _ = listening.accept()
            with client:
                # Closed with something unread, the connection would be reset and the answer lost.
                client.settimeout(0.05)
                with suppress(OSError):
                    client.recv(65536)
                request_id = os.urandom(16).hex().encode()
                document = NOBODY % request_id
                client.send(NOBODY_HEAD % (request_id, len(document)) + document)

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

    def _start_one(self, tell: int | None = None) -> Worker | None:
        taken = {worker.number for worker in self._workers.values()}
        number = next(number for number in range(1, len(taken) + 2) if number not in taken)
        try:
            # Looked at before it starts, for then it is no longer its predecessor's.
            worker = Worker(number, self._pulse(number))
            self._workers[self._start(number, tell)] = worker
        except OSError as error:
            _say(f"worker {number} cannot be started ({error})")
            self._not_before = time.monotonic() + PAUSE_S
            return None
        return worker

    def _wait(self) -> None:
        """Until a signal, a worker's end, the first worker's word, or the time to look at them or start a successor."""
        until = min(self._look_at, self._not_before) if self._missing else self._look_at
        timeout = min(LOOK_S, max(0.0, until - time.monotonic()))
        refusing = {each.fileno(): each for each in self._listening} if self._refuses else {}
        readable, _, _ = select.select([self._woken, *self._told, *refusing], [], [], timeout)
        for descriptor in refusing.keys() & readable:
            self._refuse(refusing[descriptor])
        if self._woken in readable:
            os.read(self._woken, 4096)
        if self._told and self._told[0] in readable:
            self._learn(os.read(self._told[0], 4096).decode())

    def _learn(self, word: str) -> None:
        """`word` is what service.launch tells, or empty from one that has ended."""
        os.close(self._told.pop())
        if not self._wanted:
            # A signal came first.
            return
        if word:
            wanted, drain_s, start_s, address = word.split(maxsplit=3)
            self._wanted, self._drain_s, self._start_looks = int(wanted), float(drain_s), float(start_s) / LOOK_S
            for worker in self._workers.values():
                # Until now it has looked for what would be wrong, and may have compiled what all others find.
                worker.is_timed_anew()
            _say(f"{self._wanted} workers on {address.strip()} (Ctrl-C ends them)")
        else:
            # It has said why.
            self._wanted, self._status = 0, 1

    def _reap(self) -> None:
        for pid, status in _ended():
            if pid not in self._workers:
                # As the first process of a container this one inherits those that have lost their parent.
                continue
            worker = self._workers.pop(pid)
            if worker is self._scout:
                self._scout = None
                _say(f"worker {worker.number} (process {pid}) ended {_how(status)}, unready; the old workers go on")
            elif self._missing and not worker.ending:
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
            why = worker.looked_at(self._pulse(worker.number), self._start_looks)
            if worker.kill_at is not None and now >= worker.kill_at:
                why = why or "does not end"
            if why and not worker.killed:
                worker.killed = True
                _say(f"worker {worker.number} (process {pid}) {why}: killed")
                os.kill(pid, signal.SIGKILL)
        if self._scout and self._scout.alive and not self._scout.killed:
            self._renew()

    def _renew(self) -> None:
        """End all but the scout, which is one of those that take their place."""
        scout, self._scout = self._scout, None
        self._end([pid for pid, worker in self._workers.items() if not (worker is scout or worker.ending)])

    def _obey(self) -> None:
        signals, self._signals = self._signals, set()
        if signals & ENDING and self._wanted:
            self._wanted, self._scout = 0, None
            for listening in self._listening:
                listening.close()
            self._end(list(self._workers), drains=signal.SIGTERM in signals)
        elif signal.SIGHUP in signals and self._wanted:
            if self._told or self._scout:
                # What was changed since it started is for the next.
                self._signals.add(signal.SIGHUP)
            else:
                self._scout = self._start_one()

    def _end(self, pids: list[int], drains: bool = False) -> None:
        for pid in pids:
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


def start_worker(number: int, tell: int | None, *, listening: list[int], life: int, environment: dict[str, str]) -> int:
    """A process of service.launch, in a session of its own so that Ctrl-C reaches the supervisor alone."""
    command = [sys.executable, "-m", "service.launch", "--number", str(number), "--life", str(life)]
    command += ["--socket", *map(str, listening)]
    if tell is not None:
        command += ["--tell", str(tell)]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(sys.executable, command, environment, file_actions=[nothing], setsid=True)
