"""service.direct: an image decoded, queued and answered by plain calls, and nothing left behind."""

import asyncio
import gc
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from service.answers import Answers, Options, Row
from service.backends import Backend
from service.batching import Batcher, Job, Limits
from service.binary import BinaryAnswers
from service.bundle import load
from service.cache import AnswerCache
from service.classifier import Classifier
from service.direct import DirectClassification
from service.images import Pixels
from service.protocol import DirectExchange
from service.question import Question
from service.registry import Registry, ServedModel
from tests.test_answers import outputs
from tests.test_batching import Device, now, simulated
from tests.test_bundle import write_bundle

LABELS = ["dark", "light"]


class Exchange:
    """Takes an answer in the connection's place."""

    def __init__(self) -> None:
        self.left: Any = None
        self.answers: list[tuple[int, bytes, dict[str, Any]]] = []

    def leave(self) -> None:
        left, self.left = self.left, None
        left()

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        self.left = None
        self.answers.append((status, lines, json.loads(body)))


class Service:
    """A model that tells how bright a picture is, within an event loop; fails at what is all white."""

    def __init__(self, root: Path, threads: ThreadPoolExecutor, limits: Limits, timeout_s: float = math.inf) -> None:
        bundle = load(write_bundle(root, labels=LABELS))
        answers = Answers(bundle)
        self.forwarded = 0

        def forward(pixels: Pixels, *, alone: bool) -> list[Row]:
            self.forwarded += len(pixels)
            brightness = pixels.mean((1, 2, 3)) / 255
            if (brightness == 1).any():
                raise ValueError("dazzled")
            return answers.rows(outputs(np.stack([0.5 - brightness, brightness - 0.5], 1).astype(np.float32)))

        self.batcher = Batcher(forward, limits, Device().turns, lambda report: None, now)
        self.done: list[tuple[str, int]] = []
        backend = cast("Backend", None)
        model = ServedModel(bundle, "none", backend, answers, BinaryAnswers(bundle, answers), self.batcher)
        registry = Registry({"pets": model}, threads)
        classifier = Classifier(registry, 1_000_000, 1, AnswerCache(0), lambda *_: None)
        self.direct = DirectClassification(
            Question(model, Options(), binary=False),
            classifier,
            5000,
            None,
            lambda *told: self.done.append(told[:2]),
            timeout_s,
        )

    def post(self, body: bytes) -> Exchange:
        exchange = Exchange()
        assert self.direct(cast("DirectExchange", exchange), body)
        return exchange


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def picture(grey: int, side: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


def labels(exchange: Exchange) -> list[str]:
    ((status, _, document),) = exchange.answers
    assert status == 200
    return [prediction["label"] for prediction in document["predictions"]]


ROOMY = Limits(max_batch_size=4, max_queue_size=100, max_wait_s=60)


@simulated
async def test_each_request_has_its_own_answer_and_is_counted(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """By its id, which its header and its body tell."""
    service = Service(tmp_path, threads, ROOMY)
    exchanges = [service.post(picture(grey)) for grey in (10, 240, 20, 230, 30)]
    assert service.batcher.queued == 5
    await asyncio.sleep(1)
    assert [labels(exchange)[0] for exchange in exchanges] == ["dark", "light", "dark", "light", "dark"]
    ids = [document["request_id"] for exchange in exchanges for _, _, document in exchange.answers]
    assert len(set(ids)) == 5
    assert sorted(service.done) == sorted((request_id, 200) for request_id in ids)
    for exchange, request_id in zip(exchanges, ids, strict=True):
        assert b"x-request-id: %b\r\n" % request_id.encode() in exchange.answers[0][1]


@simulated
async def test_what_goes_wrong_is_told_as_anywhere(
    tmp_path: Path, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged image at once, a full queue at once, a failing network when it has failed, and each is counted."""
    service = Service(tmp_path, threads, Limits(4, 2, 60))
    waiting = [service.post(picture(grey)) for grey in (255, 10)]
    refused = [service.post(picture(20)), service.post(picture(20)[:-30])]
    assert [exchange.answers[0][0] for exchange in refused] == [503, 400]
    assert b"retry-after: 1" in refused[0].answers[0][1]
    await asyncio.sleep(1)
    assert [exchange.answers[0][0] for exchange in waiting] == [500, 200]
    assert waiting[0].answers[0][2]["title"] == "Internal error"
    assert "dazzled" in caplog.text
    assert sorted(status for _, status in service.done) == [200, 400, 500, 503]


@simulated
async def test_a_body_for_the_usual_way_is_left_alone(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """One of too many bytes or pixels is neither answered nor queued."""
    service = Service(tmp_path, threads, ROOMY)
    for body in (bytes(5001), picture(20, side=300)):
        exchange = Exchange()
        assert not service.direct(cast("DirectExchange", exchange), body)
        assert (exchange.answers, exchange.left) == ([], None)
    assert (service.batcher.queued, service.done) == (0, [])


@simulated
async def test_a_client_that_leaves_costs_no_inference(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """It leaves the queue at once, is not answered and not counted; its neighbours are."""
    service = Service(tmp_path, threads, ROOMY)
    gone, kept = service.post(picture(10)), service.post(picture(240))
    gone.leave()
    assert service.batcher.queued == 1
    await asyncio.sleep(1)
    assert (gone.answers, labels(kept)) == ([], ["light", "dark"])
    assert len(service.done) == 1


@simulated
async def test_a_head_s_timeout_holds_for_all_that_comes_under_it(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """Each request has its own time from when it came; a device that is busy for longer never sees it."""
    service = Service(tmp_path, threads, ROOMY, timeout_s=0.25)
    turns = service.batcher._turns
    turns._busy = True  # type: ignore[attr-defined]
    for _ in range(2):
        late = service.post(picture(10))
        await asyncio.sleep(0.2)
        assert late.answers == []
        await asyncio.sleep(0.1)
        ((status, lines, document),) = late.answers
        assert (status, document["title"]) == (503, "Overloaded")
        assert b"retry-after: 1" in lines
    turns._busy = False  # type: ignore[attr-defined]
    in_time = service.post(picture(240))
    await asyncio.sleep(1)
    assert labels(in_time) == ["light", "dark"]
    assert service.forwarded == 1


@simulated
async def test_nothing_is_left_to_the_garbage_collector(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """Whether a request is answered, refused, or given up by its client."""
    service = Service(tmp_path, threads, ROOMY)
    gc.collect()
    before = objects()
    gc.disable()
    try:
        for _ in range(3):
            service.post(picture(10))
            service.post(b"no image")
            service.post(picture(20)).leave()
            await asyncio.sleep(1)
        assert objects() == before
    finally:
        gc.enable()


def objects() -> int:
    """Exchanges and jobs in memory."""
    return sum(type(found) in (Exchange, Job) for found in gc.get_objects())
