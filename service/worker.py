"""One worker process: every model loaded and warm behind an HTTP server.

service.launch makes it in a process that service.supervisor started, service.api in one that `bentoml serve` started.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import uvicorn

from service import VERSION, feedback, registry
from service.access_log import AccessLog
from service.board import BOARD, Board
from service.cache import AnswerCache
from service.classifier import Classifier
from service.errors import SettingError
from service.explanations import Explainer
from service.gate import Gate
from service.http import Front
from service.images import accepting
from service.late import Late
from service.metrics import Metrics
from service.openapi import document
from service.protocol import Application
from service.pulse import Pulse
from service.server import Server
from service.settings import Settings, available_cores

# The API route of BentoML's Python client.
PIXELS_ROUTE = "/classify_pixels"
# What BentoML answers: a closed set, for its metrics keep a row for every path ever asked for. Its index page is not
# among them, for it reports its visitors to a third party.
BENTOML_PATHS = frozenset({"/schema.json", PIXELS_ROUTE})
NO_ADMIN_PORT = "BentoML's launcher serves by one port only, so TRUEODDS_ADMIN_PORT means nothing there: unset it."


class Models:
    """Every model loaded and warm, and what counts and logs what they are asked."""

    def __init__(self, settings: Settings, board: Board, folder: Path | None, number: int, pulse: Pulse) -> None:
        self.metrics = Metrics(folder)
        self.log = AccessLog(sys.stderr, settings.access_log_sample)
        memories = feedback.memories(settings, folder, number)
        models = registry.load(settings, board, self.metrics.batch, settings.compiled, pulse, memories)
        self.metrics.served(models)
        cache = AnswerCache(settings.cache_bytes)
        accepted = accepting(settings.formats)
        self.classifier = Classifier(
            models, settings.max_pixels, available_cores(), cache, self.metrics.cached, pulse, accepted
        )
        most = settings.max_explained
        self.explainer = Explainer(self.classifier, most, pulse) if most else None
        self.feedback = feedback.started(settings, memories, models)

    def close(self) -> None:
        if self.explainer:
            self.explainer.close()
        self.classifier.close()
        if self.feedback:
            self.feedback.close()
        self.metrics.count()
        self.log.close()


class Worker:
    """A worker, `number` of its instance, whose workers share a folder; without one there is this worker only.

    A process has one at most: BentoML, which imports service.api, has no other way to find it.
    """

    of_this_process: ClassVar["Worker | None"] = None

    def __init__(
        self, settings: Settings, folder: Path | None = None, number: int = 0, *, two_ports: bool = False
    ) -> None:
        """`two_ports`: whoever starts it can serve operators by a socket of their own. Raises SettingError."""
        if settings.admin_port and not two_ports:
            raise SettingError(NO_ADMIN_PORT)
        Worker.of_this_process = self
        self.settings = settings
        self._folder = folder
        self._number = number
        self._board = Board(folder and folder / BOARD, number)
        self._pulse = Pulse(self._board)
        self._gate = Gate.of(settings, folder, number, self._refused)
        self._front = Front(BENTOML_PATHS, settings, document(VERSION))
        self._models: Models | None = None
        # What is served by the operators' own socket.
        self._operators: Application | None = None

    def before(self, make: Callable[[], Application]) -> Application:
        """The application to serve, before BentoML's, which `make` makes when it is needed."""
        front = self._front.before(Late(make, self.models, self._front.stopped))
        if self._gate and self.settings.admin_port:
            self._operators = self._gate.of_operators(self.settings).before(front)
        return self._gate.before(front) if self._gate else front

    def server(self, config: uvicorn.Config) -> Server:
        tls = self.settings.tls
        return Server(
            config,
            self.settings.deadlines,
            self._board,
            self._pulse,
            self.settings.drain_s,
            self._front.leaves,
            tls.context() if tls else None,
            self._operators,
        )

    def _refused(self, request_id: str, method: str, path: str, status: int, seconds: float) -> None:
        if self._models:
            self._models.metrics.request("", status, seconds)
            self._models.log.request(request_id, method, path, status, seconds)

    def models(self) -> Models:
        """Loaded when first asked for. Raises StartupError."""
        if self._models is None:
            self._models = Models(self.settings, self._board, self._folder, self._number, self._pulse)
            self._front.started(self._models)
        return self._models
