"""wrk, which makes the load: one thread of it, any number of connections, each posting as soon as it is answered."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from loadtest.bodies import Body

SCRIPT = Path(__file__).parent / "post.lua"
TIMEOUT_S = 30
# How long after its time wrk may take to say what it saw.
PATIENCE_S = TIMEOUT_S + 10
RESULT = re.compile(r"^RESULT (.*)$", re.MULTILINE)


class WrkFailed(Exception):
    """wrk is not there, or could not do its work; says what to do."""


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw. Latencies in ms, by wrk corrected for what a stalled connection did not send."""

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    errors: int

    @classmethod
    def parse(cls, output: str) -> Self:
        """Of wrk's output, the line that post.lua prints. Raises WrkFailed."""
        found = RESULT.search(output)
        if not found:
            raise WrkFailed(f"wrk printed no figures but: {output.strip()[-500:] or 'nothing'}")
        figures = {key: int(value) for key, value in (pair.split("=") for pair in found[1].split())}
        latencies = {f"{name}_ms": figures[name] / 1000 for name in ("p50", "p90", "p99", "p999", "max")}
        return cls(figures["requests"], figures["us"] / 1e6, **latencies, errors=figures["errors"])

    @property
    def rate(self) -> float:
        """Requests answered each second; errors do not count."""
        return max(0, self.requests - self.errors) / self.seconds


class Wrk:
    """One run of wrk, under way from the start; `load` waits for its end. A context: wrk never outlives it."""

    def __init__(self, url: str, body: Body, connections: int, seconds: int) -> None:
        self._limit_s = seconds + PATIENCE_S
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", f"--script={SCRIPT}"]
        self._process = subprocess.Popen(  # noqa: S603  no shell is between  # nosec B603
            [program(), *options, url, "--", body.content_type, body.accept, body.authorization, *map(str, body.files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends wrk
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def load(self) -> Load:
        """Raises WrkFailed."""
        try:
            output, _ = self._process.communicate(timeout=self._limit_s)
        except subprocess.TimeoutExpired:
            raise WrkFailed(f"wrk did not end within {self._limit_s} s") from None
        return Load.parse(output)


def program() -> str:
    """Where wrk is. Raises WrkFailed where it is not."""
    found = shutil.which("wrk")
    if not found:
        raise WrkFailed("wrk, which makes the load, is not installed; on Debian or Ubuntu: apt install wrk")
    return found


def version() -> str:
    """As wrk tells it, such as "4.1.0"."""
    # It prints its usage too, and ends with status 1.
    command = [program(), "-v"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed  # nosec B603
    found = re.search(r"\d+\.\d+\.\d+", run.stdout + run.stderr)
    return found[0] if found else "unknown"
