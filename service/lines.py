"""Lines of a log, written by a thread of their own from a bounded queue.

A log that is full or read too slowly costs lines, never answers.
"""

import logging
import threading
from queue import Full, Queue
from typing import TextIO

WAITING_LINES = 1000


class Lines:
    """Writes to `output`."""

    def __init__(self, output: TextIO, name: str) -> None:
        self._output = output
        self._lines: Queue[bytes | None] = Queue(WAITING_LINES)
        self._writer = threading.Thread(target=self._write, name=name, daemon=True)
        self._writer.start()

    def put(self, line: bytes) -> bool:
        """Whether there was room for it."""
        try:
            self._lines.put_nowait(line)
        except Full:
            return False
        return True

    def close(self) -> None:
        """Write what waits, for a moment."""
        try:
            self._lines.put_nowait(None)
        except Full:
            return
        self._writer.join(timeout=1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._output.write(line.decode() + "\n")
                self._output.flush()
            except (OSError, ValueError):
                # A full disk or a closed pipe; the next line may fare better.
                continue


class LinesHandler(logging.Handler):
    """What is logged, written so."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put(self.format(record).encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._lines.close()
        super().close()
