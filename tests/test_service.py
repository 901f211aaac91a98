"""The contract, end to end: a real process, a real socket, the committed bundles."""

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import aiohttp
import bentoml
import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service import binary, bundle, images
from service.calibrators import METHODS
from service.metrics import COUNT_AFTER_S
from service.settings import BUNDLES
from tests.conftest import ROOT, Server, calibration, environment, fixtures, serving

pytestmark = pytest.mark.slow

MODELS = sorted(path.name for path in BUNDLES.iterdir())
MEMBERS = {"type", "title", "status", "detail", "request_id"}


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    """Check that a response is a problem document of this status, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, object] = response.json()
    assert document.keys() == MEMBERS
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return document


def metric(server: Server, name: str) -> float:
    """The sum of a metric's samples over all labels and workers, once each has counted what it noted."""
    time.sleep(2 * COUNT_AFTER_S)
    text = httpx.get(f"{server.url}/metrics").text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.mark.parametrize("model", MODELS)
def test_an_image_gets_the_documented_answer(server: Server, model: str) -> None:
    """One image gives one result object with every member of the contract."""
    image, _ = fixtures(model)[0]
    response = server.post(model, image)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    result = response.json()
    found = bundle.discover(BUNDLES)[model]
    assert result["request_id"] == response.headers["x-request-id"]
    assert result["model"] == {"name": model, "version": found.manifest.version, "sha256": found.sha256}
    assert len(result["predictions"]) == 3
    top = result["predictions"][0]
    assert top.keys() == {"label", "class_index", "probability", "uncalibrated_probability"}
    assert found.manifest.labels[top["class_index"]] == top["label"]
    assert top["label"] in result["prediction_set"]["labels"]
    assert result["prediction_set"]["coverage"] == 0.95
    assert result["ood"].keys() == {"score", "method", "threshold", "is_ood"}
    assert result["ood"]["is_ood"] == (result["ood"]["score"] > result["ood"]["threshold"])
    assert result["calibration"]["id"] == calibration(model).id
    assert result["calibration"]["method"] == calibration(model).method
    assert isinstance(result["abstain"], bool)
    assert "logits" not in result


@pytest.mark.parametrize("model", MODELS)
def test_the_fixtures_are_recognised(server: Server, model: str) -> None:
    """Of 64 real test images, no more are wrong than the published accuracy explains."""
    right = sum(
        server.post(model, image).json()["predictions"][0]["label"] == label for image, label in fixtures(model)
    )
    assert right >= 58


@pytest.mark.parametrize("model", MODELS)
def test_probabilities_and_logits_belong_together(server: Server, model: str) -> None:
    """Calibrated and raw probabilities follow from the logits, by the method and parameters published."""
    found = calibration(model)
    for image, _ in fixtures(model)[:8]:
        result = server.post(model, image, query="?top_k=all&logits=true").json()
        by_class = {entry["class_index"]: entry for entry in result["predictions"]}
        logits = np.array(result["logits"])
        raw = np.exp(logits - logits.max())
        calibrated = METHODS[found.method](logits[None], found.params)[0]
        for k in range(10):
            assert math.isclose(by_class[k]["uncalibrated_probability"], raw[k] / raw.sum(), abs_tol=1e-5)
            assert math.isclose(by_class[k]["probability"], calibrated[k], abs_tol=1e-5)
        listed = [entry["class_index"] for entry in result["predictions"]]
        assert listed == np.argsort(-logits, kind="stable").tolist()


def test_one_file_in_a_form_is_answered_like_a_bare_body(server: Server) -> None:
    """multipart/form-data with one part named file gives one result object."""
    image, _ = fixtures("digits")[0]
    response = httpx.post(f"{server.url}/v1/models/digits/classify", files={"file": image})
    assert response.json()["predictions"] == server.post("digits", image).json()["predictions"]


def test_several_files_are_answered_in_order_and_a_bad_one_costs_no_other(server: Server) -> None:
    """A form of several gives results in order, each a result or an error object."""
    good = fixtures("digits")[:5]
    parts = [("file", image) for image, _ in good]
    parts[2:2] = [("file", good[0][0][:100]), ("file", b"not an image")]
    response = httpx.post(f"{server.url}/v1/models/digits/classify", files=parts)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result.get("error", {}).get("status") for result in results] == [None, None, 400, 415, None, None, None]
    expected = [server.post("digits", image).json()["predictions"][0]["label"] for image, _ in good]
    assert [r["predictions"][0]["label"] for r in results if "error" not in r] == expected
    assert results[2]["error"].keys() == MEMBERS


def test_more_files_than_one_batch_are_all_answered_in_order(server: Server) -> None:
    """Requests larger than a batch are split and put together again."""
    images = [image for image, _ in fixtures("digits")] * 2
    alone = [server.post("digits", image).json()["predictions"][0] for image in images[:64]]
    response = httpx.post(f"{server.url}/v1/models/digits/classify", files=[("file", i) for i in images], timeout=60)
    together = [result["predictions"][0] for result in response.json()["results"]]
    assert len(together) == 128
    for one, other in zip(alone * 2, together, strict=True):
        assert one["label"] == other["label"]
        assert math.isclose(one["probability"], other["probability"], abs_tol=1e-5)


def test_a_body_that_is_no_image_gets_415(server: Server) -> None:
    """Text under an image's media type, and other media types, are not images."""
    assert "JPEG" in str(problem(server.post("digits", b"hello"), 415)["detail"])
    assert "text/plain" in str(problem(server.post("digits", b"hello", "text/plain"), 415)["detail"])
    image, _ = fixtures("digits")[0]
    problem(server.post("digits", image, "application/x-www-form-urlencoded"), 415)


def test_a_damaged_image_gets_400(server: Server) -> None:
    """Truncated and empty images are named as such."""
    image, _ = fixtures("cifar10")[0]
    for body in (image[:-1], image[: len(image) // 2], image[:20], b""):
        problem(server.post("digits", body), 400)


def test_an_unknown_model_gets_404_with_the_known_ones(server: Server) -> None:
    """The detail lists what there is."""
    detail = str(problem(server.post("nothing", b"x"), 404)["detail"])
    assert all(model in detail for model in MODELS)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/models/",
        "/v1/models/digits/",
        "/v1/models/digits/classify/x",
        "/static_content/x",
        "/static_content/index.css",
    ],
)
def test_an_unknown_path_gets_404(server: Server, path: str) -> None:
    """Whatever is not in the contract is not there."""
    problem(httpx.get(server.url + path), 404)


@pytest.mark.parametrize(
    "query", ["top_k=0", "top_k=11", "top_k=-1", "top_k=x", "top_k=", "logits=maybe", "topk=3", "top_k=1&top_k=2"]
)
def test_a_bad_parameter_gets_422(server: Server, query: str) -> None:
    """A parameter that makes no sense is refused, not ignored."""
    image, _ = fixtures("digits")[0]
    problem(server.post("digits", image, query=f"?{query}"), 422)


def test_a_wrong_method_gets_405_with_the_right_one(server: Server) -> None:
    """Allow names the method that works."""
    response = httpx.get(f"{server.url}/v1/models/digits/classify")
    problem(response, 405)
    assert response.headers["allow"] == "POST"
    problem(httpx.post(f"{server.url}/v1/models"), 405)


def test_a_body_over_the_limit_gets_413_declared_or_not(server: Server) -> None:
    """By its Content-Length at once, without one while it streams; the connection goes on working."""
    too_large = b"\x89PNG\r\n\x1a\n" + bytes(11 * 1024 * 1024)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        url, headers = "/v1/models/digits/classify", {"content-type": "image/png"}
        problem(client.post(url, content=too_large, headers=headers), 413)
        chunks = (too_large[start : start + 65536] for start in range(0, len(too_large), 65536))
        problem(client.post(url, content=chunks, headers=headers), 413)
        image, _ = fixtures("digits")[0]
        assert client.post(url, content=image, headers=headers).status_code == 200


def test_a_body_declared_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    """The answer comes on the header alone."""
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/models/digits/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        "Content-Length: 99999999999\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_image_with_too_many_pixels_gets_413_from_its_header(server: Server, tmp_path: Path) -> None:
    """A PNG of 20,000 × 20,000 zeros is half a megabyte and is refused undecoded."""
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    started = time.perf_counter()
    assert "pixels" in str(problem(server.post("digits", path.read_bytes()), 413)["detail"])
    assert time.perf_counter() - started < 1


def test_the_models_are_listed_and_described(server: Server) -> None:
    """Labels, input, version, digests, accuracy and calibration figures."""
    listed = httpx.get(f"{server.url}/v1/models").json()["models"]
    assert [model["name"] for model in listed] == MODELS
    for model in MODELS:
        described = httpx.get(f"{server.url}/v1/models/{model}").json()
        found = bundle.discover(BUNDLES)[model]
        assert described["labels"] == found.manifest.labels
        assert described["files"] == found.manifest.files
        assert described["input"]["height"] == 32
        assert described["calibration"]["metrics"]["after"]["accuracy"] == calibration(model).metrics.after.accuracy
        assert described["backend"] == {"name": "onnx", "device": "cpu"} or described["backend"]["device"] == "cuda"


def test_the_root_leads_on(server: Server) -> None:
    """Whoever opens the address finds where things are, each of them there; no page calls a third party."""
    start = httpx.get(server.url).json()
    for name in ("models", "openapi", "metrics", "ready", "alive"):
        assert httpx.get(server.url + start[name]).status_code == 200


def test_health_and_readiness(server: Server) -> None:
    """Both answer 200 once every model is loaded, and readiness names the models."""
    assert httpx.get(f"{server.url}/livez").status_code == 200
    ready = httpx.get(f"{server.url}/readyz")
    assert ready.status_code == 200
    assert ready.json()["models"] == MODELS
    assert httpx.head(f"{server.url}/readyz").status_code == 200


def test_request_ids_are_kept_when_sane_and_replaced_when_not(server: Server) -> None:
    """A client's id comes back in header and body; one that could forge a log line does not."""
    url = f"{server.url}/v1/models/nothing"
    assert httpx.get(url, headers={"x-request-id": "abc-1.2_3"}).json()["request_id"] == "abc-1.2_3"
    assert httpx.get(url, headers={"x-request-id": "a b"}).json()["request_id"] != "a b"
    assert len(httpx.get(url, headers={"x-request-id": "x" * 129}).json()["request_id"]) == 32


def test_the_openapi_document_describes_the_contract(server: Server) -> None:
    """/docs.json holds every route this service answers itself."""
    document = httpx.get(f"{server.url}/docs.json").json()
    assert document["openapi"].startswith("3.")
    of_a_model = {f"/v1/models/{{name}}{rest}" for rest in ("", "/classify", "/calibration", "/drift")}
    assert of_a_model | {"/v1/models", "/v1/feedback", "/livez", "/readyz"} == set(document["paths"])
    assert set(document["paths"]["/v1/models/{name}/classify"]["post"]["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "application/x-npy",
        "multipart/form-data",
    }


def test_bentomls_own_client_classifies_pixels(server: Server) -> None:
    """One array gives one result, a stack of them a list; the numbers are those of the HTTP route."""
    images = [Image.open(path) for path in sorted((ROOT / "tests/fixtures/digits").glob("*.png"))[:3]]
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    with bentoml.SyncHTTPClient(server.url) as client:
        one = client.classify_pixels(pixels=arrays[0], model="digits", top_k=1)
        several = client.classify_pixels(pixels=np.stack(arrays), model="digits")["results"]
    expected = server.post("digits", fixtures("digits")[0][0], query="?top_k=1").json()
    assert one["predictions"] == expected["predictions"]
    assert [result["predictions"][0]["label"] for result in several] == [label for _, label in fixtures("digits")[:3]]


@pytest.mark.parametrize(
    "body",
    [
        {"pixels": [[300, -1]], "model": "digits"},
        {"pixels": [[0.5]], "model": "digits"},
        {"pixels": [["a"]], "model": "digits"},
        {"pixels": [[1, 2], [3]], "model": "digits"},
        {"pixels": "http://127.0.0.1:1/x", "model": "digits"},
        {"pixels": [[10**30]], "model": "digits"},
        {"pixels": [], "model": "digits"},
        {"pixels": [[0]], "model": "nothing"},
        {"pixels": [[0]], "model": "digits", "top_k": 0},
        {},
    ],
)
def test_bad_pixels_get_a_4xx(server: Server, body: dict[str, object]) -> None:
    """BentoML's own route never answers bad input with a 500 either."""
    assert 400 <= httpx.post(f"{server.url}/classify_pixels", json=body).status_code < 500


def test_nothing_a_client_sends_is_fetched(server: Server) -> None:
    """A body that looks like a URL is not followed, on either route."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.5)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x.png"
        server.post("digits", url.encode())
        server.post("digits", url.encode(), "text/plain")
        httpx.post(f"{server.url}/v1/models/digits/classify", data={"file": url})
        for body in ({"pixels": url, "model": "digits"}, {"pixels": [[0]], "model": url}):
            httpx.post(f"{server.url}/classify_pixels", json=body)
        with pytest.raises(TimeoutError):
            bait.accept()


def test_bentomls_routes_have_the_body_limit_too(server: Server) -> None:
    """A body that BentoML would read whole is refused by its size."""
    problem(httpx.post(f"{server.url}/classify_pixels", content=bytes(11 * 1024 * 1024)), 413)


def test_unknown_paths_leave_the_metrics_as_they_are(server: Server) -> None:
    """No client can make the metrics grow by asking for ever new paths."""
    before = len(httpx.get(f"{server.url}/metrics").text.splitlines())
    for i in range(50):
        httpx.get(f"{server.url}/random-{i}")
        httpx.get(f"{server.url}/v1/models/random-{i}")
    after = httpx.get(f"{server.url}/metrics").text
    assert "random-" not in after
    assert len(after.splitlines()) <= before + 40


def test_the_service_never_loads_torch(server: Server) -> None:
    """Serving needs no torch: importing the service with the default settings loads none."""
    code = "import sys, service.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in _descendants(server.process.pid)]
    assert maps
    assert not any("libtorch" in text for text in maps)


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [below for child in children for below in _descendants(int(child))]


@pytest.mark.parametrize("model", MODELS)
def test_truncated_images_among_many_cost_no_other(server: Server, model: str) -> None:
    """64 concurrent clients, one in ten sending a truncated image: exactly those get 400; batches form."""
    images = [image for image, _ in fixtures(model)]
    batches, total = metric(server, "trueodds_batch_size_count"), metric(server, "trueodds_batch_size_sum")

    async def client(number: int, http: aiohttp.ClientSession) -> list[tuple[bool, int]]:
        seen = []
        for turn in range(20):
            bad = (number + turn) % 10 == 0
            image = images[(number * 20 + turn) % len(images)]
            body = image[: len(image) // 2] if bad else image
            async with http.post(f"{server.url}/v1/models/{model}/classify", data=body, headers=PNG) as response:
                await response.read()
                seen.append((bad, response.status))
        return seen

    async def crowd() -> list[tuple[bool, int]]:
        # aiohttp, for httpx takes longer over a request than the service does, and so never makes it batch.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as http:
            seen = await asyncio.gather(*(client(n, http) for n in range(64)))
        return [answer for answers in seen for answer in answers]

    answers = asyncio.run(crowd())
    assert len(answers) == 1280
    assert all(status == (400 if bad else 200) for bad, status in answers)
    batches, total = (
        metric(server, "trueodds_batch_size_count") - batches,
        metric(server, "trueodds_batch_size_sum") - total,
    )
    assert total == sum(not bad for bad, _ in answers)
    # The small network is often done before the next image is here, and an empty queue is not waited on.
    assert total / batches > (4 if model == "cifar10" else 1.2)


PNG = {"content-type": "image/png"}


def test_an_overloaded_model_says_503_and_when_to_retry(tmp_path: Path) -> None:
    """With a queue of one image, a crowd gets answers and 503s with Retry-After, nothing else."""
    image, _ = fixtures("cifar10" if "cifar10" in MODELS else "digits")[0]
    model = "cifar10" if "cifar10" in MODELS else "digits"
    settings = {"TRUEODDS_WORKERS": "1", "TRUEODDS_MAX_QUEUE_SIZE": "1", "TRUEODDS_MAX_BATCH_SIZE": "1"}
    with serving(tmp_path, settings) as tight, ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(lambda _: tight.post(model, image), range(400)))
    statuses = {response.status_code for response in responses}
    assert statuses <= {200, 503}
    assert 200 in statuses
    for response in responses:
        if response.status_code == 503:
            problem(response, 503)
            assert int(response.headers["retry-after"]) >= 1


def test_the_torchscript_backend_gives_the_same_answers(server: Server, tmp_path: Path) -> None:
    """One setting changes the runtime, and nothing a client sees."""
    pytest.importorskip("torch")
    pins = ",".join(found.seal.pin for found in bundle.discover(BUNDLES).values())
    settings = {"TRUEODDS_BACKEND": "torchscript", "TRUEODDS_PINNED": pins, "TRUEODDS_WORKERS": "1"}
    with serving(tmp_path, settings) as other:
        assert httpx.get(f"{other.url}/v1/models/digits").json()["backend"]["name"] == "torchscript"
        for model in MODELS:
            for image, _ in fixtures(model)[:16]:
                one, two = (s.post(model, image, query="?top_k=all").json() for s in (server, other))
                for left, right in zip(one["predictions"], two["predictions"], strict=True):
                    assert math.isclose(left["probability"], right["probability"], abs_tol=1e-5)


def start(arguments: list[str], home: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(home, settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "settings", "complaint"),
    [
        ([], {"TRUEODDS_BUNDLES": "/nonexistent"}, "/nonexistent"),
        ([], {"TRUEODDS_MODELS": "nothing"}, "nothing"),
        ([], {"TRUEODDS_PORT": "1"}, "TRUEODDS_PORT is not a setting"),
        ([], {"TRUEODDS_MAX_PIXELS": "many"}, "TRUEODDS_MAX_PIXELS"),
        (["--port", "99999"], {}, "99999"),
        (["--host", "192.0.2.1"], {}, "192.0.2.1"),
    ],
)
def test_what_keeps_it_from_starting_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], complaint: str
) -> None:
    """No traceback, a non-zero exit, and the name of what is wrong."""
    ended = start(arguments, tmp_path, settings)
    assert ended.returncode == 1
    assert complaint in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_told_in_one_line(server: Server, tmp_path: Path) -> None:
    """A second start does not disturb the first."""
    ended = start(["--port", server.url.rsplit(":", 1)[1]], tmp_path, {})
    assert ended.returncode == 1
    assert "--port" in ended.stderr
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_ctrl_c_ends_the_service_and_frees_its_port(tmp_path: Path) -> None:
    """Interrupted, it exits soon, without a traceback, and can be started again on the same port."""
    with serving(tmp_path, {"TRUEODDS_WORKERS": "1"}) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) is not None
        assert "Traceback" not in running.log.read_text()
        with socket.create_server(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))):
            pass


def _wait_until_refused(address: tuple[str, int], patience: float = 10) -> None:
    """Until the operating system refuses connections; those that it still took for the service are closed unused."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            socket.create_connection(address, timeout=1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail(f"{address} still takes connections {patience:g} s after SIGTERM")


def test_a_request_that_was_begun_is_answered_before_the_end(tmp_path: Path) -> None:
    """SIGTERM between the two halves of a body; nobody new gets in, and the service ends with status 0."""
    image, label = fixtures("digits")[0]
    with serving(tmp_path) as running:
        address = ("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=20) as client:
            head = f"POST /v1/models/digits/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(image)}\r\n\r\n"
            client.sendall(head.encode() + image[:10])
            time.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
            _wait_until_refused(address)
            client.sendall(image[10:])
            answer = client.recv(100_000)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert f'"label":"{label}"'.encode() in answer
        assert running.process.wait(20) == 0


def test_a_worker_that_dies_is_replaced_and_the_others_answer_meanwhile(tmp_path: Path) -> None:
    """Within a second or two, and its successor answers like any other."""
    image, _ = fixtures("digits")[0]
    with serving(tmp_path, {"TRUEODDS_WORKERS": "2"}) as running:
        before = _workers(running, 2)
        os.kill(before[0], signal.SIGKILL)
        assert running.post("digits", image).status_code == 200
        after = _workers(running, 2)
        assert before[1] in after
        os.kill(before[1], signal.SIGKILL)
        assert running.post("digits", image).status_code == 200


def _workers(running: Server, number: int) -> list[int]:
    """Process ids, as soon as there are so many that live."""
    deadline = time.monotonic() + 20
    while len(found := _descendants(running.process.pid)[1:]) != number and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == number
    return found


def test_workers_speak_our_http(server: Server) -> None:
    """Not uvicorn's, which answers a request without a Host."""
    assert _first_line(server, b"GET /livez HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def _first_line(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=10) as client:
        client.sendall(request)
        return client.recv(1000)


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        (("bentoml", "serve", "."), {}),
        # What BentoML alone can do, TLS for one, is left to BentoML.
        (("service",), {"BENTOML_CONFIG_OPTIONS": "api_server.backlog=1024"}),
    ],
)
def test_bentomls_own_workers_serve_the_same(
    server: Server, tmp_path: Path, launcher: tuple[str, ...], settings: dict[str, str]
) -> None:
    """`bentoml serve`: our front and our HTTP in BentoML's processes, and one set of metrics for all workers."""
    image, _ = fixtures("digits")[0]
    with serving(tmp_path, {"TRUEODDS_WORKERS": "2", **settings}, launcher) as other:
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _workers(other, 2)]
        assert all(b"_bentoml_impl" in command for command in commands)
        one, two = (s.post("digits", image).json() for s in (server, other))
        assert one["predictions"] == two["predictions"]
        assert _first_line(other, b"GET /livez HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        with bentoml.SyncHTTPClient(other.url) as client:
            assert client.classify_pixels(pixels=np.zeros((28, 28), np.uint8), model="digits")["predictions"]
        assert metric(other, "trueodds_requests_total") >= 1


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/digits", "/docs.json", "/"])
def test_metadata_is_sent_once_to_who_keeps_it(server: Server, path: str) -> None:
    """A client that has the document is told so; every worker gives it the same tag."""
    first = httpx.get(server.url + path)
    for _ in range(6):  # a connection each, so that every worker is asked
        again = httpx.get(server.url + path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert httpx.get(server.url + path, headers={"if-none-match": '"other"'}).content == first.content


@pytest.mark.parametrize("model", MODELS)
def test_a_tensor_is_answered_as_its_images_are(server: Server, model: str) -> None:
    """As .npy and as bytes with a shape; what the network is fed gives what the files give."""
    files = [image for image, _ in fixtures(model)[:5]]
    spec = bundle.discover(BUNDLES)[model].manifest.input
    tensor = np.stack([images.to_pixels(images.decode(images.read_header(file, 10**6)), spec) for file in files])
    npy = BytesIO()
    np.save(npy, tensor)
    shape = {"x-tensor-shape": ",".join(map(str, tensor.shape)), "content-type": "application/octet-stream"}
    url = f"{server.url}/v1/models/{model}/classify?top_k=all"
    answers = [
        httpx.post(url, files=[("file", file) for file in files]),
        httpx.post(url, content=npy.getvalue(), headers={"content-type": "application/x-npy"}),
        httpx.post(url, content=tensor.tobytes(), headers=shape),
    ]
    expected, *others = [probabilities(answer) for answer in answers]
    assert expected.shape == (5, 10)
    for other in others:
        np.testing.assert_allclose(other, expected, atol=1e-5)


def probabilities(answer: httpx.Response) -> np.ndarray:
    """(N, C), by class index."""
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    ordered = [sorted(result["predictions"], key=lambda found: found["class_index"]) for result in results]
    return np.array([[found["probability"] for found in each] for each in ordered])


def drawn(side: int) -> bytes:
    """A PNG that is too large to be decoded on the event loop."""
    file = BytesIO()
    Image.effect_noise((side, side), 50).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("query", ["", "?top_k=all&logits=true"])
@pytest.mark.parametrize("headers", [{}, {"accept": binary.MEDIA_TYPE.decode()}], ids=["JSON", "binary"])
@pytest.mark.parametrize("media_type", ["image/png", "application/octet-stream"])
def test_a_head_that_came_before_is_answered_as_a_new_one(
    server: Server, query: str, headers: dict[str, str], media_type: str
) -> None:
    """Byte for byte but for the ids, whatever the body: images small and large, damaged ones, none."""
    good, other = (image for image, _ in fixtures("digits")[:2])
    bodies = [good, other, good[:-20], b"", b"no image", drawn(150), drawn(400), good]
    ids = set()
    with httpx.Client(headers={"content-type": media_type, **headers}) as client:
        url = f"{server.url}/v1/models/digits/classify{query}"
        for _ in range(4):
            client.post(url, content=good)
        for number, body in enumerate(bodies):
            known, new = (client.post(url, content=body, headers=more) for more in ({}, {"x-new": str(number)}))
            assert known.status_code == new.status_code
            assert known.headers.keys() == new.headers.keys()
            assert shape(known) == shape(new)
            ids |= {known.headers["x-request-id"], new.headers["x-request-id"]}
    assert len(ids) == 2 * len(bodies)


def shape(response: httpx.Response) -> bytes:
    """The body without the request's id."""
    request_id = response.headers["x-request-id"].encode()
    assert response.content.count(request_id) == 1
    return response.content.replace(request_id, b"")


def test_every_request_under_a_known_head_is_counted(server: Server) -> None:
    """By its status, as any other; a request id in the head comes back each time."""
    image, _ = fixtures("digits")[0]
    url, before = f"{server.url}/v1/models/digits/classify", metric(server, "trueodds_requests_total")
    with httpx.Client(headers={"content-type": "image/png", "x-request-id": "mine"}) as client:
        for body in (image, b"no image") * 10:
            answer = client.post(url, content=body)
            assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
    # Looking is a request too.
    assert metric(server, "trueodds_requests_total") == before + 21


@pytest.mark.parametrize("model", MODELS)
def test_binary_answers_say_what_json_says(server: Server, model: str) -> None:
    """Asked for by Accept; a file at fault is marked and explained, and the others are answered."""
    files = [("file", image) for image, _ in fixtures(model)[:4]]
    files.insert(2, ("file", b"no image"))
    url = f"{server.url}/v1/models/{model}/classify?top_k=all&logits=true"
    plain = httpx.post(url, files=files).json()["results"]
    response = httpx.post(url, files=files, headers={"accept": binary.MEDIA_TYPE.decode()})
    assert response.headers["content-type"] == binary.MEDIA_TYPE.decode()
    found = binary.decode(response.content)
    assert found["arrays"]["failed"].tolist() == [0, 0, 1, 0, 0]
    assert found["errors"]["2"]["status"] == 415 == plain[2]["error"]["status"]
    for i in (0, 1, 3, 4):
        for prediction in plain[i]["predictions"]:
            k = prediction["class_index"]
            assert found["arrays"]["probabilities"][i, k] == pytest.approx(prediction["probability"], abs=1e-6)
        assert found["arrays"]["logits"][i].tolist() == pytest.approx(plain[i]["logits"], abs=1e-4)
        assert bool(found["arrays"]["abstain"][i]) == plain[i]["abstain"]


def test_what_is_not_offered_is_not_acceptable(server: Server) -> None:
    """Neither JSON nor the binary form: 406, before the body is read."""
    image, _ = fixtures("digits")[0]
    url = f"{server.url}/v1/models/digits/classify"
    problem(httpx.post(url, content=image, headers={"accept": "text/html", "content-type": "image/png"}), 406)


def test_the_cache_answers_what_it_has_seen(tmp_path: Path) -> None:
    """The same pixels give the same answer under a new request id, and the metrics tell; off by default."""
    with serving(tmp_path / "home", {"TRUEODDS_CACHE_BYTES": "1000000", "TRUEODDS_WORKERS": "1"}) as cached:
        image, _ = fixtures("cifar10")[0]
        first, second = (cached.post("cifar10", image).json() for _ in range(2))
        form = httpx.post(f"{cached.url}/v1/models/cifar10/classify", files=[("file", image)] * 3).json()["results"]
        assert first.pop("request_id") != second.pop("request_id")
        for result in form:
            del result["request_id"]
        assert [second, *form] == [first] * 4
        text = httpx.get(f"{cached.url}/metrics").text
        assert 'trueodds_cache_total{model="cifar10",outcome="hit"} 4.0' in text
        assert 'trueodds_cache_total{model="cifar10",outcome="miss"} 1.0' in text
        assert 'trueodds_batch_size_count{model="cifar10"} 1.0' in text
