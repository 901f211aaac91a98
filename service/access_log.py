"""One line of JSON for a sample of the requests, and for every one that failed here.

Lines are written by a thread of their own from a bounded queue: a log that is full or read too slowly costs lines,
never answers.
"""

import random
import threading
from queue import Full, Queue
from typing import TextIO

import orjson

WAITING_LINES = 1000


class AccessLog:
    """Writes to `output`. `sample` is the share of requests logged; those answered with 5xx always are."""

    def __init__(self, output: TextIO, sample: float) -> None:
        self._output = output
        self._sample = sample
        self._lines: Queue[bytes | None] = Queue(WAITING_LINES)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._writer.start()

    def request(self, request_id: str, method: str, path: str, status: int, seconds: float) -> None:
        if status >= 500 or random.random() < self._sample:  # noqa: S311  a sample, not a secret  # nosec B311
            self._put(
                {
                    "request_id": request_id,
                    "method": method,
                    "path": path,
                    "status": status,
                    "ms": round(seconds * 1000, 3),
                }
            )

    def close(self) -> None:
        """Write what waits, for a moment."""
        try:
            self._lines.put_nowait(None)
        except Full:
            return
        self._writer.join(timeout=1)

    def _put(self, line: dict[str, str | int | float]) -> None:
        if self._dropped:
            line["dropped_before"] = self._dropped
        try:
            self._lines.put_nowait(orjson.dumps(line))
            self._dropped = 0
        except Full:
            self._dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._output.write(line.decode() + "\n")
                self._output.flush()
            except (OSError, ValueError):
                # A full disk or a closed pipe; the next line may fare better.
                continue
