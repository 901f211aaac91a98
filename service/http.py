"""The HTTP interface: a bare ASGI callable in front of BentoML's own application.

It answers the routes of the contract itself, past BentoML's middleware, and hands on what is BentoML's: metrics, index
page and the API routes of its Python client. Nothing else reaches BentoML, whose metrics grow with every new path.
"""

import gc
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.classifier import Classifier
from service.descriptions import describe, summarise
from service.errors import InternalError, MethodNotAllowed, NotReady, Problem, UnknownPath
from service.metrics import Metrics
from service.requests import Disconnected, Receive, Request, Scope
from service.responses import Response, Send
from service.settings import Settings

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("trueodds")

MODELS = "/v1/models"
BENTOML_PATHS = frozenset({"/", "/metrics", "/schema.json", "/healthz"})
BENTOML_FOLDER = "/static_content/"


class Front:
    """Answers what is ours, hands on what is BentoML's. Ready once `started` has been called."""

    def __init__(self, bentoml_routes: frozenset[str], settings: Settings, openapi: dict[str, Any]) -> None:
        self._bentoml: Application = _nothing_behind
        self._bentoml_paths = BENTOML_PATHS | bentoml_routes
        self._settings = settings
        self._openapi = openapi
        self._classifier: Classifier | None = None
        self._metrics: Metrics | None = None

    def before(self, bentoml: Application) -> Application:
        """Stand in front of BentoML's application; returns what is to be served."""
        self._bentoml = bentoml
        return self

    def started(self, classifier: Classifier, metrics: Metrics) -> None:
        """Every model is loaded and warm."""
        self._classifier, self._metrics = classifier, metrics
        # What start-up left on the heap stays: walking it in every full collection costs 60 to 250 ms each.
        gc.collect()
        gc.freeze()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._belongs_to_bentoml(scope["path"]):
            await self._bentoml(scope, receive, send)
            return
        started = time.perf_counter()
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except Problem as problem:
            response = Response.problem(problem, request.id)
        except Disconnected:
            return
        except Exception:
            logger.exception("request %s failed", request.id)
            problem = InternalError("The service failed to answer; its log has the reason under this request_id.")
            response = Response.problem(problem, request.id)
        await response.send(send, request.id)
        if self._metrics:
            self._metrics.request(self._model_of(request.path), response.status, time.perf_counter() - started)

    def _belongs_to_bentoml(self, path: str) -> bool:
        return path in self._bentoml_paths or path.startswith(BENTOML_FOLDER)

    async def _answer(self, request: Request) -> Response:
        match request.path:
            case "/livez":
                return _only("GET", request, {"status": "alive"})
            case "/readyz":
                return _only("GET", request, {"status": "ready", "models": list(self._ready().registry)})
            case "/docs.json":
                return _only("GET", request, self._openapi)
            case path if path == MODELS:
                return _only("GET", request, {"models": [summarise(m) for m in self._ready().registry.values()]})
            case path if path.startswith(MODELS + "/"):
                return await self._answer_for_model(request, *path.removeprefix(MODELS + "/").split("/"))
        raise UnknownPath(f"There is nothing at {request.path}; /docs.json lists what there is.")

    async def _answer_for_model(self, request: Request, name: str, *rest: str) -> Response:
        model = self._ready().registry[name]
        match rest:
            case ():
                return _only("GET", request, describe(model))
            case ("classify",):
                return await self._classify(request, name)
        raise UnknownPath(f"There is nothing at {request.path}; /docs.json lists what there is.")

    async def _classify(self, request: Request, name: str) -> Response:
        if request.method != "POST":
            raise MethodNotAllowed(request.method, "POST")
        classifier = self._ready()
        model = classifier.registry[name]
        options = request.options(len(model.bundle.manifest.labels))
        upload = await request.upload(self._settings)
        if upload.several:
            return Response.json({"results": await classifier.classify_files(model, upload.files, options, request.id)})
        return Response.json(await classifier.classify_file(model, upload.files[0], options, request.id))

    def _ready(self) -> Classifier:
        if self._classifier is None:
            raise NotReady("The models are still being loaded; retry soon.")
        return self._classifier

    def _model_of(self, path: str) -> str:
        """The served model a path is about, else the empty string: a closed set, so a safe label."""
        name = path.removeprefix(MODELS + "/").partition("/")[0]
        return name if self._classifier and name in dict(self._classifier.registry) else ""


async def _nothing_behind(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the front stands before no application yet")


def _only(method: str, request: Request, document: Any) -> Response:
    if request.method not in (method, "HEAD"):
        raise MethodNotAllowed(request.method, method)
    return Response.json(document)
