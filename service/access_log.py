"""One line of JSON for a sample of the requests, and for every one that failed here."""

import random
from typing import TextIO

import orjson

from service.lines import Lines


class AccessLog:
    """Writes to `output`. `sample` is the share of requests logged; those answered with 5xx always are."""

    def __init__(self, output: TextIO, sample: float) -> None:
        self._sample = sample
        self._lines = Lines(output, "access-log")
        self._dropped = 0

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
        self._lines.close()

    def _put(self, line: dict[str, str | int | float]) -> None:
        if self._dropped:
            line["dropped_before"] = self._dropped
        self._dropped = 0 if self._lines.put(orjson.dumps(line)) else self._dropped + 1
