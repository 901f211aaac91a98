"""Whether a worker still does what it is there for: its event loop turns, and what runs in its threads comes to an end.

Time is counted in turns of the event loop, not by a clock: a machine that was suspended, or a process that was stopped
for a while, is no further than before.
"""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from service.board import Board

logger = logging.getLogger("trueodds")

BEATS_A_SECOND = 10
# A call in a thread that takes longer than it may, and longer than this, will not come back.
PATIENCE_S = 5.0


class Pulse:
    """One worker's, shown on the board for whoever supervises it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._beats = 0
        # Of each call that runs in a thread: what it is, and by which beat it must have ended.
        self._running: dict[int, tuple[str, int]] = {}
        self._ids = itertools.count()
        self._stuck = False

    def beat(self) -> None:
        """BEATS_A_SECOND times, in the event loop."""
        self._beats += 1
        if self._running and not self._stuck:
            # A copy, for threads come and go.
            for name, until in list(self._running.values()):
                if self._beats > until:
                    self.give_up(f"{name} does not come to an end")
        self._board.beat(self._stuck)

    def give_up(self, reason: str) -> None:
        """Have the next beat tell that this worker had better be replaced. From any thread."""
        self._stuck = True
        logger.error("%s; this worker had better be replaced", reason)

    @contextmanager
    def watching(self, name: str, may_take_s: float = 0.0) -> Iterator[None]:
        """What runs in this context, in any thread, is expected to end within PATIENCE_S + `may_take_s`."""
        number = next(self._ids)
        self._running[number] = name, self._beats + round((PATIENCE_S + may_take_s) * BEATS_A_SECOND)
        try:
            yield
        finally:
            del self._running[number]
