"""A GPU that may fail, and the CPU behind it: every image is answered, and none with numbers that are none.

Out of memory, a GPU may answer the next batch. One that is lost, or has once read where nothing is, fails every call of
the process from then on; only a new process can have it back.
"""

import logging
from collections.abc import Callable

import numpy as np

from service.backends import Backend, Outputs
from service.errors import StartupError
from service.images import Pixels

logger = logging.getLogger("trueodds")

# So many batches in a row, and the GPU is not asked again.
FAILURES = 3


class WithStandby:
    """`backend`, and where that fails, what `make_standby` gives, made when it is first needed.

    `give_up` learns, with the reason, that this process had better be replaced; until it is, the standby answers.
    """

    def __init__(self, backend: Backend, make_standby: Callable[[], Backend], give_up: Callable[[str], None]) -> None:
        self.device = backend.device
        self.placement = backend.placement
        self.plan = backend.plan
        self._backend = backend
        self._make_standby = make_standby
        self._standby: Backend | None = None
        self._give_up = give_up
        # In a row.
        self._failures = 0

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        """Raises what the backend has raised where there can be no standby."""
        if self._failures >= FAILURES and self._standby:
            return self._standby.forward(pixels, alone=alone)
        try:
            outputs = self._backend.forward(pixels, alone=alone)
            if not np.isfinite(outputs.logits).all():
                raise ArithmeticError(f"{self.device} gave numbers that are none")
        except Exception as error:
            return self._failed(error).forward(pixels, alone=alone)
        self._failures = 0
        return outputs

    def _failed(self, error: Exception) -> Backend:
        self._failures += 1
        if self._failures == 1:
            logger.error("%s failed and the CPU answers: %s", self.device, error)
        if self._failures == FAILURES:
            self._give_up(f"{self.device} fails again and again")
        if self._standby is None:
            try:
                self._standby = self._make_standby()
            except StartupError as reason:
                raise error from reason
        return self._standby
