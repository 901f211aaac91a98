"""More than a worker can do: who is late is told in time, who waits for one answer gets in, and all are told when."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.conftest import Server, fixtures, serving
from tests.test_service import problem

pytestmark = pytest.mark.container

IMAGE = fixtures("cifar10")[0][0]
MANY = np.zeros((256, 32, 32, 3), np.uint8).tobytes()
TENSOR = {"content-type": "application/octet-stream", "x-tensor-shape": "256,32,32,3"}
SETTINGS = {
    "TRUEODDS_WORKERS": "1",
    "TRUEODDS_THREADS": "1",
    "TRUEODDS_MODELS": "cifar10",
    "TRUEODDS_MAX_QUEUE_SIZE": "600",
    "TRUEODDS_MAX_BATCH_SIZE": "8",
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A worker to which bulk is sent without end by eight clients."""
    with serving(tmp_path_factory.mktemp("busy"), SETTINGS) as running:
        over = threading.Event()

        def client() -> None:
            with httpx.Client(headers=TENSOR, timeout=60) as bulk:
                while not over.is_set():
                    bulk.post(f"{running.url}/v1/models/cifar10/classify", content=MANY)

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client) for _ in range(8)]
            time.sleep(1)
            yield running
            over.set()
        assert all(each.exception() is None for each in clients)


@pytest.mark.slow
def test_lone_images_get_in_beside_bulk(busy: Server) -> None:
    """All of them, though bulk is refused all the while."""
    with httpx.Client(headers={"content-type": "image/png"}, timeout=60) as client:
        url = f"{busy.url}/v1/models/cifar10/classify"
        assert {client.post(url, content=IMAGE).status_code for _ in range(50)} == {200}
        answers = [client.post(url, content=MANY, headers=TENSOR) for _ in range(10)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        problem(answer, 503)
        assert 1 <= int(answer.headers["retry-after"]) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{"content-type": "image/png"}, TENSOR], ids=["lone", "bulk"])
def test_a_timeout_is_kept(busy: Server, headers: dict[str, str]) -> None:
    """Whoever asks for an answer within a millisecond has one, or is refused, soon; on the direct way too."""
    url = f"{busy.url}/v1/models/cifar10/classify"
    body = IMAGE if headers is not TENSOR else MANY
    statuses = set()
    with httpx.Client(headers={**headers, "x-request-timeout-ms": "1"}, timeout=60) as client:
        for _ in range(30):
            started = time.monotonic()
            answer = client.post(url, content=body)
            assert time.monotonic() - started < 1
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                problem(answer, 503)
                assert int(answer.headers["retry-after"]) >= 1
    assert statuses <= {200, 503}
    assert 503 in statuses
