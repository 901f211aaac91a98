import json
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from loadtest.answers import (
    MIN_ANSWERS,
    ModelList,
    Result,
    ServedModel,
    Tally,
    WrongAnswer,
    check_result,
    differ,
    parse,
)
from loadtest.images import Image, read_images

ROOT = Path(__file__).parent.parent
IMAGES = read_images()
LABELS = {model: sorted({image.label for image in IMAGES if image.model == model}) for model in ("cifar10", "digits")}
MODELS = [{"name": name, "version": "1", "sha256": name, "labels": labels} for name, labels in LABELS.items()]
BY_CONTENT = {image.content: image for image in IMAGES}

# What a fake service makes of a posted image: a status and a document.
Answer = Callable[[Image, int, str], tuple[int, dict[str, Any]]]


def result(image: Image, top_k: int, request_id: str) -> dict[str, Any]:
    """The answer of a network that is always right. Each image has its own probabilities and its own score."""
    labels = LABELS[image.model]
    first = 0.9 + image.index / 1000
    others = (1 - first) / (len(labels) - 1)
    predictions = [
        {"label": label, "class_index": i, "probability": first if label == image.label else others}
        for i, label in enumerate(labels)
    ]
    predictions.sort(key=lambda prediction: -float(str(prediction["probability"])))
    model = {"name": image.model, "version": "1", "sha256": image.model}
    return {
        "request_id": request_id,
        "model": model,
        "predictions": predictions[:top_k],
        "ood": {"score": float(image.index)},
    }


def right(image: Image, top_k: int, request_id: str) -> tuple[int, dict[str, Any]]:
    return 200, result(image, top_k, request_id)


def failing(image: Image, top_k: int, request_id: str) -> tuple[int, dict[str, Any]]:
    return 500, {"status": 500, "title": "Internal error", "request_id": request_id}


def mislabelling(image: Image, top_k: int, request_id: str) -> tuple[int, dict[str, Any]]:
    labels = LABELS[image.model]
    wrong = labels[(labels.index(image.label) + 1) % len(labels)]
    return 200, result(Image(image.model, image.index, wrong, image.content), top_k, request_id)


def mixing_up() -> Answer:
    """Answers with what the image before is, as a batcher that gets its rows wrong would."""
    before = {image.model: image for image in IMAGES}

    def answer(image: Image, top_k: int, request_id: str) -> tuple[int, dict[str, Any]]:
        other, before[image.model] = before[image.model], image
        return 200, result(other, top_k, request_id)

    return answer


class FakeService(BaseHTTPRequestHandler):
    """The part of the contract that load tests meet."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answer: ClassVar[Answer]

    def do_GET(self) -> None:
        self._send(200, {"models": MODELS} if self.path == "/v1/models" else {"unexpected": self.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request_id = self.headers["x-request-id"]
        if body not in BY_CONTENT:
            self._send(400, {"status": 400, "title": "Undecodable image", "request_id": request_id})
            return
        asked = parse_qs(urlsplit(self.path).query).get("top_k", ["3"])[0]
        answer = type(self).answer
        self._send(*answer(BY_CONTENT[body], 10 if asked == "all" else int(asked), request_id))

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        self.send_header("X-Request-Id", self.headers.get("x-request-id", "none"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet: the tests look at what the clients say."""


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A fake service on a free port; its address."""
    handler = type("Handler", (FakeService,), {"answer": staticmethod(answer)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def load(host: str, report: Path, seconds: float = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest", f"--host={host}", "--users=4", f"--seconds={seconds}", f"--report={report}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Where a report shall be written, in a folder that is not there yet."""
    return tmp_path / "made" / "report.html"


def some_result(image: Image = IMAGES[0], top_k: int = 3, **changes: Any) -> Result:
    return parse(Result, json.dumps(result(image, top_k, "id") | changes).encode())


def model_of(image: Image) -> ServedModel:
    models = parse(ModelList, json.dumps({"models": MODELS}).encode()).models
    return next(model for model in models if model.name == image.model)


@pytest.mark.slow
def test_right_answers_give_a_table_a_report_and_exit_status_0(report: Path) -> None:
    """Both models are loaded; the report is whole and alone in its folder."""
    with serving(right) as host:
        run = load(host, report, seconds=2)
    assert run.returncode == 0, run.stdout + run.stderr
    for model in LABELS:
        assert f"{model}: classify " in run.stdout
        assert f"accuracy {model} 1.0000 over " in run.stdout
    assert "p99.9 ms" in run.stdout
    assert str(report) in run.stdout
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]
    assert report.read_text().rstrip().endswith("</html>")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (failing, "status 500 instead of 200"),
        (mixing_up(), "was answered differently before"),
        (mislabelling, "accuracy under 0.9"),
    ],
    ids=["500", "mixed up", "mislabelled"],
)
def test_wrong_answers_are_named_and_give_exit_status_1(answer: Answer, complaint: str, report: Path) -> None:
    """The report is written all the same."""
    with serving(answer) as host:
        run = load(host, report, seconds=3)
    assert run.returncode == 1, run.stdout + run.stderr
    assert complaint in run.stdout
    assert report.exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_run_in_order(report: Path) -> None:
    """A run of an hour ends at once, with its table and its report."""
    with serving(right) as host:
        command = [
            sys.executable,
            "-m",
            "loadtest",
            "--host",
            host,
            "--users=4",
            "--seconds=3600",
            f"--report={report}",
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert select.select([process.stdout], [], [], 30)[0], "it says nothing"
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGINT)
            output, complaints = process.communicate(timeout=30)
    assert process.returncode == 0, output + complaints
    assert "Traceback" not in complaints
    assert "accuracy digits" in output
    assert report.exists()


@pytest.mark.slow
def test_the_locustfile_works_with_locusts_own_command() -> None:
    """People who know locust need nothing of ours."""
    with serving(right) as host:
        options = ["-f", "loadtest/locustfile.py", "--host", host, "--headless", "-u4", "-r4", "-t2s"]
        command = [sys.executable, "-m", "locust", *options]
        run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "digits: accuracy 1.0000" in run.stderr


@pytest.mark.slow
def test_without_a_server_the_remedy_is_told_and_the_exit_status_is_2(report: Path) -> None:
    """The port is taken but nobody listens on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        run = load(f"http://127.0.0.1:{taken.getsockname()[1]}", report)
    assert run.returncode == 2
    assert "no server answers" in run.stderr
    assert "make serve" in run.stderr
    assert "Traceback" not in run.stderr
    assert not report.exists()


def test_both_models_have_64_images_whose_labels_are_known() -> None:
    """What is posted alternates between the models."""
    assert len(IMAGES) == 128
    assert [image.model for image in IMAGES[:4]] == ["cifar10", "digits", "cifar10", "digits"]
    assert (IMAGES[1].index, IMAGES[1].label) == (0, "7")


def test_a_right_result_passes() -> None:
    """Of the first classes as of all."""
    check_result(some_result(), model_of(IMAGES[0]), "id", 3)
    check_result(some_result(top_k=10), model_of(IMAGES[0]), "id", None)


@pytest.mark.parametrize(
    ("changes", "top_k", "complaint"),
    [
        ({"request_id": "other"}, 3, "request_id"),
        ({"model": {"name": "digits", "sha256": "digits"}}, 3, "another model"),
        ({}, 4, "as many predictions"),
        ({"predictions": result(IMAGES[0], 3, "")["predictions"][::-1]}, 3, "not sorted"),
        ({"predictions": result(IMAGES[0], 1, "")["predictions"] * 3}, 3, "twice"),
        ({"predictions": [{"label": "bird", "class_index": 0, "probability": 1}]}, 1, "does not belong"),
        ({"predictions": [{"label": "airplane", "class_index": 10, "probability": 1}]}, 1, "does not belong"),
        (
            {"predictions": [p | {"probability": 0.05} for p in result(IMAGES[0], 10, "")["predictions"]]},
            None,
            "do not sum to 1",
        ),
    ],
)
def test_a_result_that_breaks_the_contract_is_refused(
    changes: dict[str, Any], top_k: int | None, complaint: str
) -> None:
    """The complaint tells what is wrong."""
    with pytest.raises(WrongAnswer, match=complaint):
        check_result(some_result(**changes), model_of(IMAGES[0]), "id", top_k)


@pytest.mark.parametrize("probability", ["1.1", "-0.1", "NaN", "Infinity", "null", '"0.5"'])
def test_a_probability_is_a_number_from_0_to_1(probability: str) -> None:
    """JSON has no NaN, yet Python's writers make it."""
    body = json.dumps(result(IMAGES[0], 1, "id") | {"predictions": "HERE"})
    prediction = f'[{{"label": "cat", "class_index": 3, "probability": {probability}}}]'
    with pytest.raises(WrongAnswer, match=r"probability|body"):
        parse(Result, body.replace('"HERE"', prediction).encode())


@pytest.mark.parametrize("body", [b"", b"\xff", b"<html>", b"[]", b"null", b"{}", b'{"request_id": "id"}'])
def test_what_is_no_result_is_refused_in_few_words(body: bytes) -> None:
    """Statistics group by the message, so it must not grow with the body."""
    with pytest.raises(WrongAnswer, match="is no part of a Result"):
        parse(Result, body)


def test_answers_to_one_image_may_round_differently_and_tell_of_more_classes() -> None:
    """Batches of another size are computed by other kernels; ties of the tail may come in any order."""
    nearly = result(IMAGES[0], 10, "id")["predictions"]
    nearly[0]["probability"] -= 1e-5
    assert not differ(some_result(top_k=3), some_result(predictions=nearly))
    assert not differ(some_result(top_k=3), some_result(predictions=[nearly[0], nearly[9], nearly[8]]))


def test_answers_to_two_images_differ() -> None:
    """By their classes, by their probabilities, or by their score alone."""
    first = IMAGES[0]
    same_label = next(image for image in IMAGES[1:] if (image.model, image.label) == (first.model, first.label))
    other_label = next(image for image in IMAGES if image.model == first.model and image.label != first.label)
    assert differ(some_result(first), some_result(same_label))
    assert differ(some_result(first), some_result(other_label))
    assert differ(some_result(first), some_result(first, ood={"score": 0.5}))


@pytest.mark.parametrize(
    ("answers", "wrong", "too_low"),
    [(MIN_ANSWERS, 0, []), (MIN_ANSWERS, 20, []), (MIN_ANSWERS, 21, ["cifar10"]), (MIN_ANSWERS - 1, 199, [])],
)
def test_accuracy_is_judged_over_many_answers_only(answers: int, wrong: int, too_low: list[str]) -> None:
    """Nine in ten are enough, and single wrong labels are no failure."""
    image, tally = IMAGES[0], Tally()
    mistaken = Image(image.model, image.index, "truck", image.content)
    for number in range(answers):
        tally.add(mistaken if number < wrong else image, some_result(image))
    assert tally.accuracies() == {"cifar10": (1 - wrong / answers, answers)}
    assert tally.too_low() == too_low


def test_an_image_answered_differently_is_told() -> None:
    """By its number, so that somebody can look."""
    tally = Tally()
    tally.add(IMAGES[2], some_result(IMAGES[2]))
    with pytest.raises(WrongAnswer, match="image 1 "):
        tally.add(IMAGES[2], some_result(IMAGES[4]))
