"""service.access_log: a line for some requests and for each that failed, and never a held-up answer."""

import json
import os
import threading
import time
from io import StringIO
from typing import Any

from service.access_log import AccessLog
from service.lines import WAITING_LINES


def lines(output: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_a_request_is_told_in_one_line_of_json() -> None:
    """Id, method, path, status and time; hostile paths stay within the line."""
    output = StringIO()
    log = AccessLog(output, sample=1)
    log.request("id-1", "POST", '/v1/"\n\x00é', 200, 0.0012344)
    log.close()
    assert lines(output) == [
        {"request_id": "id-1", "method": "POST", "path": '/v1/"\n\x00é', "status": 200, "ms": 1.234}
    ]


def test_only_a_sample_is_told_but_every_failure() -> None:
    """One in ten of what went well, all that went wrong here."""
    output = StringIO()
    log = AccessLog(output, sample=0.1)
    for i in range(900):
        log.request(str(i), "GET", "/", 503 if i % 100 == 0 else 200, 0.0)
    log.close()
    statuses = [line["status"] for line in lines(output)]
    assert statuses.count(503) == 9
    assert 30 <= statuses.count(200) <= 170


def test_nothing_is_told_of_good_requests_at_sample_0() -> None:
    """Silence is possible."""
    output = StringIO()
    log = AccessLog(output, sample=0)
    log.request("id", "GET", "/", 404, 0.0)
    log.close()
    assert output.getvalue() == ""


def test_a_reader_that_stands_still_costs_lines_and_not_time() -> None:
    """A pipe nobody reads fills up; requests go on, and the next line says how many were lost."""
    reading, writing = os.pipe()
    received: list[dict[str, Any]] = []
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as output:
        log = AccessLog(output, sample=1)
        started = time.perf_counter()
        sent = WAITING_LINES + 5000
        for i in range(sent):
            log.request(str(i), "GET", "/" + "x" * 100, 200, 0.0)
        assert time.perf_counter() - started < 2
        reader = threading.Thread(target=lambda: received.extend(map(json.loads, pipe)), daemon=True)
        reader.start()
        deadline = time.monotonic() + 5
        while not any("dropped_before" in line for line in received) and time.monotonic() < deadline:
            log.request("late", "GET", "/", 200, 0.0)
            time.sleep(0.01)
        log.close()
        output.close()
        reader.join(5)
    assert 0 < sum(line.get("dropped_before", 0) for line in received) < sent


class Full(StringIO):
    """A disk with no room for the first two lines."""

    failures = 2

    def write(self, text: str) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_is_waited_out() -> None:
    """The writer lives on and writes again when there is room."""
    output = Full()
    log = AccessLog(output, sample=1)
    for i in range(3):
        log.request(str(i), "GET", "/", 200, 0.0)
    log.close()
    assert [line["request_id"] for line in lines(output)] == ["2"]
