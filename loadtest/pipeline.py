"""What a request costs beside HTTP: the service's own parts. The only place here that calls them by name."""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from prometheus_client import CollectorRegistry

from loadtest.plain import PlainLoop
from service import bundle, images, registry, tensors
from service.access_log import AccessLog
from service.answers import Options, Row
from service.backends import Outputs, onnx
from service.batching import Batcher, BatchReport, Limits
from service.board import Board
from service.cache import AnswerCache
from service.classifier import Classifier
from service.explanations import Explainer
from service.feedback import Feedback, memories
from service.http import Front
from service.images import Header, Pixels
from service.metrics import Metrics
from service.protocol import REMEMBER, Direct, DirectExchange
from service.raster import Picture
from service.registry import ServedModel
from service.settings import Settings, available_cores
from service.turns import SECONDS_ON_LOOP, Turns

REQUEST_ID = "0123456789abcdef0123456789abcdef"
OPTIONS = Options()


@dataclass(frozen=True)
class Pipeline:
    """The parts of one model in a worker, by the settings of the environment."""

    settings: Settings
    model: ServedModel

    @classmethod
    def of(cls, name: str, cache: Path) -> Self:
        """Load and warm a model; `cache` is a folder as the service has one. Raises service.errors.StartupError."""
        settings = _settings_of(name)
        models = registry.load(settings, Board(), lambda name, report: None, cache).models
        return cls(settings, models[name])

    @property
    def max_batch_size(self) -> int:
        return self.model.batcher.limits.max_batch_size

    def plain_loop(self) -> PlainLoop:
        """What does the same work without the service's parts."""
        spec = self.model.bundle.manifest.input
        return PlainLoop(self.model.bundle.directory / onnx.FILE, (spec.height, spec.width), self.settings.thread_count)

    def classify(self, files: Sequence[bytes], alone: bool = False) -> list[bytes]:
        """Files → the body of the answer to each, by one inference."""
        return self.encoded(self.rows(self.infer(self.batch(files), alone)))

    def classify_tensor(self, npy: bytes, batch: int) -> list[bytes]:
        """A .npy file → the JSON result of each image, by inferences of so many."""
        return self.encoded(self.rows_of_tensor(npy, batch))

    def classify_tensor_to_binary(self, npy: bytes, batch: int) -> bytes:
        """A .npy file → the binary answer, by inferences of so many."""
        return self.model.binary_answers.encode(self.rows_of_tensor(npy, batch), OPTIONS, REQUEST_ID)

    def rows_of_tensor(self, npy: bytes, batch: int) -> list[Row]:
        spec = self.model.bundle.manifest.input
        pixels = tensors.from_npy(npy, spec, self.settings.max_images).pixels
        batches = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
        return [row for part in batches for row in self.rows(self.infer(part))]

    def batch(self, files: Sequence[bytes]) -> Pixels:
        """(N, H, W, 3) uint8."""
        return np.stack([self.pixels(self.decoded(self.header(file))) for file in files])

    def header(self, file: bytes) -> Header:
        return images.read_header(file, self.settings.max_pixels)

    def decoded(self, header: Header) -> Picture:
        return images.decode(header)

    def pixels(self, picture: Picture) -> Pixels:
        return images.to_pixels(picture, self.model.bundle.manifest.input)

    def infer(self, pixels: Pixels, alone: bool = False) -> Outputs:
        return self.model.backend.forward(pixels, alone=alone)

    def rows(self, outputs: Outputs) -> list[Row]:
        return self.model.answers.rows(outputs)

    def encoded(self, rows: Sequence[Row]) -> list[bytes]:
        return [self.model.answers.encode(row, OPTIONS, REQUEST_ID) for row in rows]

    def runs_on_loop(self, pixels: Pixels) -> bool:
        """Whether the service would run such a batch on the event loop rather than in its thread."""
        started = time.perf_counter()
        self.infer(pixels)
        return self.model.backend.device == "cpu" and time.perf_counter() - started <= SECONDS_ON_LOOP


def pixels_of(model: str, files: Sequence[bytes]) -> Pixels:
    """(N, H, W, 3) uint8, as the model is fed."""
    settings = _settings_of(model)
    spec = bundle.discover(settings.bundles, settings.models)[model].manifest.input
    headers = [images.read_header(file, settings.max_pixels) for file in files]
    return np.stack([images.to_pixels(images.decode(header), spec) for header in headers])


@contextmanager
def hop(rows: Sequence[Row], on_loop: bool) -> Iterator[Callable[[Pixels], Awaitable[object]]]:
    """The way through queue, turn and batch and back, in a thread or not, before a backend that takes no time.

    `rows` are the answers to as many images as a batch may hold.
    """

    def forward(pixels: Pixels, *, alone: bool) -> Sequence[Row]:
        return rows[: len(pixels)]

    limits = Limits(max_batch_size=len(rows), max_queue_size=len(rows), max_wait_s=60)
    with ThreadPoolExecutor(1) as executor:
        yield Batcher(forward, limits, Turns(executor, Board(), on_loop), lambda report: None).submit


@dataclass
class _Worker:
    """What the front is told of when the models are ready."""

    classifier: Classifier
    metrics: Metrics
    log: AccessLog
    feedback: Feedback | None = None
    explainer: Explainer | None = None

    def close(self) -> None:
        self.classifier.close()
        self.log.close()


class _Exchange:
    """Takes a direct answer in the server's place."""

    def __init__(self) -> None:
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.left: Callable[[], None] | None = None
        self.until = math.inf

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        self.body.set_result(body)


@contextmanager
def front(model: str, folder: Path, alone: bool) -> Iterator[Callable[[bytes], Awaitable[bytes]]]:
    """The whole of a request but the server's part: from a PNG to the body of its answer.

    `folder` is the cache; `alone` says whether the other worker there seems to be is idle.
    """
    settings, metrics = _settings_of(model), Metrics(registry=CollectorRegistry())
    board = folder / "workers.board"
    Board(board, 1).add_images(int(not alone))
    models = registry.load(settings, Board(board, 0), metrics.batch, folder, memories=memories(settings, None, 0))
    answers = AnswerCache(settings.cache_bytes)
    classifier = Classifier(models, settings.max_pixels, available_cores(), answers, metrics.cached)
    application = Front(frozenset(), settings, {"info": {"title": ""}})

    offered: list[Direct] = []

    def post(file: bytes) -> Awaitable[bytes]:
        exchange = _Exchange()
        if offered and offered[0](cast("DirectExchange", exchange), file):
            return exchange.body
        return ask(file)

    async def ask(file: bytes) -> bytes:
        sent: list[bytes] = []
        unread = [{"type": "http.request", "body": file, "more_body": False}]
        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/v1/models/{model}/classify",
            "query_string": b"",
            "headers": [
                (b"host", b"127.0.0.1"),
                (b"content-type", b"image/png"),
                (b"content-length", str(len(file)).encode()),
            ],
            # All requests have this head, as those of most clients have.
            "extensions": {REMEMBER: offered.append},
        }

        async def receive() -> dict[str, Any]:
            return unread.pop() if unread else await asyncio.get_running_loop().create_future()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message.get("body", b""))

        await application(scope, receive, send)
        return b"".join(sent)

    with Path(os.devnull).open("w") as nowhere:
        application.started(_Worker(classifier, metrics, AccessLog(nowhere, settings.access_log_sample)))
        try:
            yield post
        finally:
            application.stopped()


def counters(model: str) -> tuple[Callable[[], None], Callable[[int], None]]:
    """What counts one request in the metrics, and what counts a batch of so many images."""
    metrics = Metrics(registry=CollectorRegistry())
    return (
        lambda: metrics.request(model, 200, 0.001),
        lambda size: metrics.batch(model, BatchReport(size, 0.001, 0.001)),
    )


def _settings_of(model: str) -> Settings:
    return Settings.from_environment().model_copy(update={"models": (model,)})
