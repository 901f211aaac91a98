"""The HTTP interface: a bare ASGI callable in front of BentoML's own application.

It answers the routes of the contract itself, past BentoML's middleware, and hands on what is BentoML's: the API routes
of its Python client. Nothing else reaches BentoML, whose metrics grow with every new path.
"""

import asyncio
import gc
import time
from functools import partial
from typing import Any, Protocol

from service import allocator
from service.access_log import AccessLog
from service.binary import wanted
from service.classifier import BYTES_DECODED_ON_LOOP, Classifier
from service.descriptions import calibration, describe, summarise
from service.direct import DirectClassification
from service.errors import (
    BadParameter,
    MethodNotAllowed,
    NotAcceptable,
    NotReady,
    Problem,
    UnknownPath,
    UnsupportedMediaType,
)
from service.explanations import Explainer
from service.feedback import Feedback
from service.labels import MOST_BYTES
from service.metrics import EXPOSITION, Metrics
from service.protocol import Application, Message, Receive, Scope, Send
from service.question import Question
from service.registry import ServedModel
from service.requests import Disconnected, Request
from service.responses import INERT, Response
from service.settings import Settings

MODELS = "/v1/models"
# For whoever opens the address in a browser.
START = {"models": MODELS, "openapi": "/docs.json", "metrics": "/metrics", "ready": "/readyz", "alive": "/livez"}


class Worker(Protocol):
    """What a worker process has made when it is ready."""

    classifier: Classifier
    metrics: Metrics
    log: AccessLog
    explainer: Explainer | None
    feedback: Feedback | None

    def close(self) -> None: ...


class Front:
    """Answers what is ours, hands on what is BentoML's. Ready once `started` has been called."""

    def __init__(self, bentoml_paths: frozenset[str], settings: Settings, openapi: dict[str, Any]) -> None:
        self._bentoml: Application = _nothing_behind
        self._bentoml_paths = bentoml_paths
        self._settings = settings
        most_bytes = min(MOST_BYTES, settings.max_body_bytes)
        self._settings_of_labels = settings.model_copy(update={"max_body_bytes": most_bytes})
        self._worker: Worker | None = None
        self._leaving = False
        # What changes with the models only, made once.
        self._documents = {
            "/": Response.cacheable_json({"name": openapi["info"]["title"], **START}),
            "/docs.json": Response.cacheable_json(openapi),
        }

    def before(self, bentoml: Application) -> Application:
        """Stand in front of BentoML's application; returns what is to be served."""
        self._bentoml = bentoml
        return self

    def leaves(self) -> None:
        """The service is about to end: whoever asks whether it is ready should send requests elsewhere."""
        self._leaving = True

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
        self._documents |= {
            f"{MODELS}/{name}/calibration": Response.cacheable_json(calibration(model))
            for name, model in models.items()
        }
        self._worker = instance
        # What start-up left on the heap stays: walking it in every full collection costs 60 to 250 ms each.
        gc.collect()
        gc.freeze()
        allocator.arrange()

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
        except Disconnected:
            return
        except Exception as error:
            response = Response.failure(error, request.id)
        await response.send(send, request.respond, request.id)
        if self._worker:
            model, seconds = self._model_of(request.path), time.perf_counter() - started
            _count(self._worker, model, request.method, request.path, request.id, response.status, seconds)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give BentoML a request whose body is read already: it has no limit of its own."""
        request = Request(scope, receive)
        try:
            request.refuse_encoded()
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
            if rest in ("classify", "drift"):
                return await (self._classify if rest == "classify" else self._drift)(request, model)
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
                if self._leaving:
                    raise NotReady("The service is ending; ask elsewhere.")
                return Response.json({"status": "ready", "models": list(self._ready().registry.models)})
            case "/metrics":
                _check_method(request, "GET")
                return await self._measured()
            case "/v1/models":
                raise _not_ready()
            case "/v1/feedback":
                return await self._labelled(request)
        raise UnknownPath(f"There is nothing at {path}; /docs.json lists what there is.")

    async def _classify(self, request: Request, model: ServedModel) -> Response:
        """In this order, for each step costs more than the one before."""
        _check_method(request, "POST")
        classifier, timeout_s = self._ready(), request.timeout_s()
        deadline = model.batcher.after(timeout_s)
        request.waits(deadline)
        binary = wanted(request.headers.get(b"accept", b""))
        question = Question(model, request.options(len(model.bundle.manifest.labels), model.bundle.coverages), binary)
        if question.options.explain:
            return await self._explained(request, question, deadline)
        upload = await request.upload(self._settings, model.bundle.manifest.input)
        if upload.tensor is not None:
            rows = await classifier.classify_pixels(model, upload.tensor, deadline)
            return question.response(rows, upload.several, request.id)
        if upload.several:
            return question.response(await classifier.classify_files(model, upload.files, deadline), True, request.id)
        if request.is_file():
            self._offer_direct_answers(request, question, timeout_s)
        return question.response([await classifier.classify_file(model, upload.files[0], deadline)], False, request.id)

    async def _explained(self, request: Request, question: Question, deadline: float) -> Response:
        explainer = self._worker.explainer if self._worker else None
        if explainer is None:
            raise BadParameter("This service explains no answers: TRUEODDS_MAX_EXPLAINED says so.")
        if question.binary:
            raise NotAcceptable("Explanations are told in JSON; accept application/json, or do without explain.")
        upload = await request.upload(self._settings, question.model.bundle.manifest.input)
        return await explainer.response(question, upload, deadline, request.id)

    async def _drift(self, request: Request, model: ServedModel) -> Response:
        _check_method(request, "GET")
        return await self._feedback().drift(model)

    async def _labelled(self, request: Request) -> Response:
        _check_method(request, "POST")
        feedback = self._feedback()
        request.refuse_encoded()
        # What a page of another site may send from a browser is of another type.
        if not request.is_json():
            raise UnsupportedMediaType("Labels are JSON; send them with Content-Type: application/json.")
        return await feedback.record(await request.body(self._settings_of_labels), request.id)

    def _feedback(self) -> Feedback:
        self._ready()
        if self._worker is None or self._worker.feedback is None:
            raise UnknownPath(
                "This service takes no feedback: TRUEODDS_FEEDBACK or TRUEODDS_FEEDBACK_REMEMBERS says so."
            )
        return self._worker.feedback

    def _offer_direct_answers(self, request: Request, question: Question, timeout_s: float) -> None:
        """To what else comes under the same head; not where the cache may know an answer."""
        worker = self._worker
        if worker is None or request.remember is None or worker.classifier.remembers:
            return
        request.remember(
            DirectClassification(
                question,
                worker.classifier,
                min(BYTES_DECODED_ON_LOOP, self._settings.max_body_bytes),
                request.given_id,
                partial(_count, worker, question.model.name, request.method, request.path),
                timeout_s,
            )
        )

    async def _measured(self) -> Response:
        """Of all workers, by way of their files; in a thread, for there may be many."""
        if self._worker is None:
            raise _not_ready()
        self._worker.metrics.count()
        text = await asyncio.get_running_loop().run_in_executor(None, _exposition, self._worker)
        return Response(200, EXPOSITION, text, (INERT,))

    def _ready(self) -> Classifier:
        if self._worker is None:
            raise _not_ready()
        return self._worker.classifier

    def _model_of(self, path: str) -> str:
        """The served model a path is about, else the empty string: a closed set, so a safe label."""
        name = path.removeprefix(MODELS + "/").partition("/")[0]
        return name if self._worker and name in self._worker.classifier.registry.models else ""


def _exposition(worker: Worker) -> bytes:
    return worker.metrics.exposition() + (worker.feedback.exposition() if worker.feedback else b"")


def _count(worker: Worker, model: str, method: str, path: str, request_id: str, status: int, seconds: float) -> None:
    worker.metrics.request(model, status, seconds)
    worker.log.request(request_id, method, path, status, seconds)


def _check_method(request: Request, method: str) -> None:
    if request.method != method and (request.method, method) != ("HEAD", "GET"):
        raise MethodNotAllowed(request.method, method)


def _not_ready() -> NotReady:
    return NotReady("The models are still being loaded; retry soon.")


async def _nothing_behind(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the front stands before no application yet")
