"""The HTTP interface: a bare ASGI callable in front of BentoML's own application.

It answers the routes of the contract itself, past BentoML's middleware, and hands on what is BentoML's: the API routes
of its Python client. Nothing else reaches BentoML, whose metrics grow with every new path.
"""

import asyncio
import ctypes
import gc
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from service.access_log import AccessLog
from service.answers import Options
from service.binary import MEDIA_TYPE, wanted
from service.classifier import Classifier, Outcome
from service.descriptions import describe, summarise
from service.errors import InternalError, MethodNotAllowed, NotReady, Problem, UnknownPath
from service.metrics import EXPOSITION, Metrics
from service.protocol import Application, Message, Receive, Scope, Send
from service.registry import ServedModel
from service.requests import Disconnected, Request
from service.responses import JSON, Response, encode
from service.settings import Settings

logger = logging.getLogger("trueodds")

MODELS = "/v1/models"
# For whoever opens the address in a browser.
START = {"models": MODELS, "openapi": "/docs.json", "metrics": "/metrics", "ready": "/readyz", "alive": "/livez"}


class Worker(Protocol):
    """What a worker process has made when it is ready."""

    classifier: Classifier
    metrics: Metrics
    log: AccessLog

    def close(self) -> None: ...


class Front:
    """Answers what is ours, hands on what is BentoML's. Ready once `started` has been called."""

    def __init__(self, bentoml_paths: frozenset[str], settings: Settings, openapi: dict[str, Any]) -> None:
        self._bentoml: Application = _nothing_behind
        self._bentoml_paths = bentoml_paths
        self._settings = settings
        self._worker: Worker | None = None
        # What changes with the models only, made once.
        self._documents = {
            "/": Response.cacheable_json({"name": openapi["info"]["title"], **START}),
            "/docs.json": Response.cacheable_json(openapi),
        }

    def before(self, bentoml: Application) -> Application:
        """Stand in front of BentoML's application; returns what is to be served."""
        self._bentoml = bentoml
        return self

    def stopped(self) -> None:
        """The worker ends."""
        if self._worker:
            self._worker.close()

    def started(self, instance: Worker) -> None:
        """Every model is loaded and warm."""
        models = instance.classifier.registry.models
        self._documents[MODELS] = Response.cacheable_json({"models": [summarise(model) for model in models.values()]})
        self._documents |= {
            f"{MODELS}/{name}": Response.cacheable_json(describe(model)) for name, model in models.items()
        }
        self._worker = instance
        # What start-up left on the heap stays: walking it in every full collection costs 60 to 250 ms each.
        gc.collect()
        gc.freeze()
        _return_free_memory()

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
        await response.send(send, request.respond, request.id)
        if self._worker:
            seconds = time.perf_counter() - started
            self._worker.metrics.request(self._model_of(request.path), response.status, seconds)
            self._worker.log.request(request.id, request.method, request.path, response.status, seconds)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give BentoML a request whose body is read already: it has no limit of its own."""
        request = Request(scope, receive)
        try:
            body = await request.body(self._settings)
        except Problem as problem:
            await Response.problem(problem, request.id).send(send, request.respond, request.id)
            return
        except Disconnected:
            return
        unread = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_again() -> Message:
            return next(unread, None) or await receive()

        await self._bentoml(scope, receive_again, send)

    async def _answer(self, request: Request) -> Response:
        path = request.path
        if path.startswith(MODELS + "/"):
            name, _, rest = path[len(MODELS) + 1 :].partition("/")
            model = self._ready().registry.named(name)
            if rest == "classify":
                return await self._classify(request, model)
        document = self._documents.get(path)
        if document:
            _check_method(request, "GET")
            return document.unless_known(request.headers.get(b"if-none-match", b""))
        match path:
            case "/livez" | "/healthz":
                _check_method(request, "GET")
                return Response.json({"status": "alive"})
            case "/readyz":
                _check_method(request, "GET")
                return Response.json({"status": "ready", "models": list(self._ready().registry.models)})
            case "/metrics":
                _check_method(request, "GET")
                return await self._measured()
            case "/v1/models":
                raise _not_ready()
        raise UnknownPath(f"There is nothing at {path}; /docs.json lists what there is.")

    async def _classify(self, request: Request, model: ServedModel) -> Response:
        """In this order, for each step costs more than the one before."""
        _check_method(request, "POST")
        classifier = self._ready()
        binary = wanted(request.headers.get(b"accept", b""))
        options = request.options(len(model.bundle.manifest.labels))
        upload = await request.upload(self._settings, model.bundle.manifest.input)
        if upload.tensor is not None:
            outcomes: Sequence[Outcome] = await classifier.classify_pixels(model, upload.tensor)
        elif upload.several:
            outcomes = await classifier.classify_files(model, upload.files)
        else:
            outcomes = [await classifier.classify_file(model, upload.files[0])]
        if binary:
            return Response(200, MEDIA_TYPE, model.binary_answers.encode(outcomes, options, request.id))
        results = [_result(model, outcome, options, request.id) for outcome in outcomes]
        return Response(200, JSON, b'{"results":[%b]}' % b",".join(results) if upload.several else results[0])

    async def _measured(self) -> Response:
        """Of all workers, by way of their files; in a thread, for there may be many."""
        if self._worker is None:
            raise _not_ready()
        text = await asyncio.get_running_loop().run_in_executor(None, self._worker.metrics.exposition)
        return Response(200, EXPOSITION, text)

    def _ready(self) -> Classifier:
        if self._worker is None:
            raise _not_ready()
        return self._worker.classifier

    def _model_of(self, path: str) -> str:
        """The served model a path is about, else the empty string: a closed set, so a safe label."""
        name = path.removeprefix(MODELS + "/").partition("/")[0]
        return name if self._worker and name in self._worker.classifier.registry.models else ""


def _result(model: ServedModel, outcome: Outcome, options: Options, request_id: str) -> bytes:
    """A result object, or the problem in its place."""
    if isinstance(outcome, Problem):
        return encode({"error": outcome.document(request_id)})
    return model.answers.encode(outcome, options, request_id)


def _return_free_memory() -> None:
    """What start-up needed for a moment, some 15 MB, goes back to the system, where the C library can do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _check_method(request: Request, method: str) -> None:
    if request.method != method and (request.method, method) != ("HEAD", "GET"):
        raise MethodNotAllowed(request.method, method)


def _not_ready() -> NotReady:
    return NotReady("The models are still being loaded; retry soon.")


async def _nothing_behind(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the front stands before no application yet")
