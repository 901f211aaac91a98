"""What processes cost: CPU time and memory, as /proc tells it. Linux only."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")
MIB = 2**20
SAMPLE_S = 0.2
# Processes are still that take less than so many cores for so long.
STILL_CORES, STILL_S, STILL_TIMEOUT_S = 0.05, 0.2, 15
# The fields of /proc/PID/stat behind the name in brackets, which may hold blanks and brackets itself.
PARENT, USER, SYSTEM, STARTED = 1, 11, 12, 19
# The fields of /proc/stat that are no idling: user, nice, system, irq, softirq, steal.
BUSY = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Usage:
    """Of some processes over a span: its length, their CPU time, user and system, and their largest RSS together.

    `other_cores` is what everything else on the machine took, the load generator and this process left out.
    """

    seconds: float
    cpu_s: float
    peak_rss_mib: float
    other_cores: float


class Watch:
    """The usage of some processes while the context lasts; `usage` is there when it has ended."""

    usage: Usage

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._peak = 0.0
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._started, self._cpu, self._own, self._busy = self._clocks()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()
        now, cpu, own, busy = self._clocks()
        seconds = now - self._started
        cpu, own = cpu - self._cpu, own - self._own
        other = max(0.0, busy - self._busy - cpu - own) / seconds
        self.usage = Usage(seconds, cpu, self._peak, other)

    def _clocks(self) -> tuple[float, float, float, float]:
        return time.monotonic(), cpu_s(self._pids), _own_cpu_s(), machine_cpu_s()

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, rss_mib(self._pids))
            if self._over.wait(SAMPLE_S):
                return


def tree(root: int) -> list[int]:
    """A process and all that descend from it, whatever groups and sessions they have made."""
    children = defaultdict(list)
    for path in PROC.iterdir():
        if path.name.isdigit() and (stat := _stat(int(path.name))):
            children[int(stat[PARENT])].append(int(path.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time, user and system, of these processes together; those that have ended count nothing."""
    stats = filter(None, map(_stat, pids))
    return sum(int(stat[USER]) + int(stat[SYSTEM]) for stat in stats) / _ticks()


def machine_cpu_s() -> float:
    """CPU time that was not idle, of the whole machine since it started."""
    fields = (PROC / "stat").read_text().partition("\n")[0].split()[1:]
    return sum(int(fields[i]) for i in BUSY) / _ticks()


def rss_mib(pids: Sequence[int]) -> float:
    """Resident memory; pages that several processes share count for each."""
    pages = sum(int(text.split()[1]) for text in _texts(pids, "statm"))
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def pss_mib(pids: Sequence[int]) -> float:
    """Proportional memory: a page that n processes share counts 1/n for each."""
    found = (re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE) for text in _texts(pids, "smaps_rollup"))
    return sum(int(match[1]) for match in found if match) / 1024


def wait_until_still(pids: Sequence[int]) -> None:
    """Until these processes have done what they have to, or have had time enough for it."""
    deadline = time.monotonic() + STILL_TIMEOUT_S
    while time.monotonic() < deadline:
        before = cpu_s(pids)
        time.sleep(STILL_S)
        if cpu_s(pids) - before < STILL_CORES * STILL_S:
            return


def stop(process: subprocess.Popen[bytes], patience_s: float = 15) -> None:
    """End a process and all that descend from it: asked first, killed where that does not help."""
    members = {pid: stat[STARTED] for pid in tree(process.pid) if (stat := _stat(pid))}
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    finally:  # Somebody may press Ctrl-C again.
        for pid, started in members.items():
            stat = _stat(pid)
            # The same process still, not another that was given its number.
            if stat and stat[STARTED] == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()


def _stat(pid: int) -> list[str] | None:
    text = next(iter(_texts([pid], "stat")), "")
    return text.rpartition(")")[2].split() or None


def _texts(pids: Sequence[int], name: str) -> list[str]:
    found = []
    for pid in pids:
        # A process may end at any time, and another user's is not ours to read.
        with contextlib.suppress(OSError):
            found.append((PROC / str(pid) / name).read_text())
    return found


def _own_cpu_s() -> float:
    """CPU time of this process and of those it has waited for, such as wrk."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")
