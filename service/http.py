"""The HTTP interface: a bare ASGI callable in front of BentoML's own application.

It answers the routes of the contract itself, past BentoML's middleware, and hands on what is BentoML's: metrics
and the API routes of its Python client. Nothing else reaches BentoML, whose metrics grow with every new path.
"""

import gc
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from service.classifier import Classifier
from service.descriptions import describe, summarise
from service.errors import InternalError, MethodNotAllowed, NotReady, Problem, UnknownPath
from service.metrics import Metrics
from service.registry import ServedModel
from service.requests import Disconnected, Message, Receive, Request, Scope
from service.responses import Response, Send
from service.settings import Settings

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("trueodds")

MODELS = "/v1/models"
# For whoever opens the address in a browser.
START = {"models": MODELS, "openapi": "/docs.json", "metrics": "/metrics", "ready": "/readyz", "alive": "/livez"}


class Worker(Protocol):
    """What a worker process has made when it is ready."""

    classifier: Classifier
    metrics: Metrics


class Front:
    """Answers what is ours, hands on what is BentoML's. Ready once `started` has been called."""

    def __init__(self, bentoml_paths: frozenset[str], settings: Settings, openapi: dict[str, Any]) -> None:
        self._bentoml: Application = _nothing_behind
        self._bentoml_paths = bentoml_paths
        self._settings = settings
        self._openapi = openapi
        self._classifier: Classifier | None = None
        self._metrics: Metrics | None = None

    def before(self, bentoml: Application) -> Application:
        """Stand in front of BentoML's application; returns what is to be served."""
        self._bentoml = bentoml
        return self

    def started(self, instance: Worker) -> None:
        """Every model is loaded and warm."""
        self._classifier, self._metrics = instance.classifier, instance.metrics
        # What start-up left on the heap stays: walking it in every full collection costs 60 to 250 ms each.
        gc.collect()
        gc.freeze()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._bentoml(scope, receive, send)
        elif scope["path"] in self._bentoml_paths:
            await self._hand_on(scope, receive, send)
        else:
            await self._respond(Request(scope, receive), send)

    async def _respond(self, request: Request, send: Send) -> None:
        started = time.perf_counter()
        try:
            response = await self._answer(request)
        except Problem as problem:
            response = Response.problem(problem, request.id)
        except Disconnected:
            return
        except Exception:
            logger.exception("request %s failed", request.id)
            failure = InternalError("The service failed to answer; its log has the reason under this request_id.")
            response = Response.problem(failure, request.id)
        await response.send(send, request.id)
        if self._metrics:
            self._metrics.request(self._model_of(request.path), response.status, time.perf_counter() - started)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give BentoML a request whose body is read already: it has no limit of its own."""
        request = Request(scope, receive)
        try:
            body = await request.body(self._settings.max_body_bytes, self._settings.body_timeout_s)
        except Problem as problem:
            await Response.problem(problem, request.id).send(send, request.id)
            return
        except Disconnected:
            return
        unread = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_again() -> Message:
            return next(unread, None) or await receive()

        await self._bentoml(scope, receive_again, send)

    async def _answer(self, request: Request) -> Response:
        match request.path:
            case "/":
                return _only("GET", request, {"name": self._openapi["info"]["title"], **START})
            case "/livez":
                return _only("GET", request, {"status": "alive"})
            case "/readyz":
                return _only("GET", request, {"status": "ready", "models": list(self._ready().registry.models)})
            case "/docs.json":
                return _only("GET", request, self._openapi)
            case path if path == MODELS:
                return _only("GET", request, {"models": [summarise(m) for m in self._ready().registry.models.values()]})
            case path if path.startswith(MODELS + "/"):
                return await self._answer_for_model(request, *path.removeprefix(MODELS + "/").split("/"))
        raise UnknownPath(f"There is nothing at {request.path}; /docs.json lists what there is.")

    async def _answer_for_model(self, request: Request, name: str, *rest: str) -> Response:
        model = self._ready().registry.named(name)
        match rest:
            case ():
                return _only("GET", request, describe(model))
            case ("classify",):
                return await self._classify(request, model)
        raise UnknownPath(f"There is nothing at {request.path}; /docs.json lists what there is.")

    async def _classify(self, request: Request, model: ServedModel) -> Response:
        if request.method != "POST":
            raise MethodNotAllowed(request.method, "POST")
        classifier = self._ready()
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
        return name if self._classifier and name in self._classifier.registry.models else ""


async def _nothing_behind(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the front stands before no application yet")


def _only(method: str, request: Request, document: Any) -> Response:
    if request.method not in (method, "HEAD"):
        raise MethodNotAllowed(request.method, method)
    return Response.json(document)
