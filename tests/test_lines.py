"""service.lines: what is logged is written by a thread, and never waited for."""

import logging
import os
import time
from io import StringIO

from service.lines import WAITING_LINES, Lines, LinesHandler


def test_records_are_written_as_lines() -> None:
    """In order, formatted, and whatever they hold."""
    output = StringIO()
    handler = LinesHandler(Lines(output, "log"))
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for message in ("one", "zwei \udcff"):
        handler.handle(logging.LogRecord("a", logging.WARNING, "", 0, message, None, None))
    handler.close()
    assert output.getvalue().splitlines() == ["WARNING one", "WARNING zwei \\udcff"]


def test_a_reader_that_stands_still_holds_nobody_up() -> None:
    """Warnings go on, and those for which there is no room are lost."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as output:
        handler = LinesHandler(Lines(output, "log"))
        started = time.perf_counter()
        for _ in range(3 * WAITING_LINES):
            handler.handle(logging.LogRecord("a", logging.WARNING, "", 0, "x" * 100, None, None))
        assert time.perf_counter() - started < 2
        os.set_blocking(pipe.fileno(), False)
        while handler._lines._lines.qsize():
            pipe.read()
            time.sleep(0.01)
        handler.close()
