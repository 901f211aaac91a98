"""What is measured side by side: the service, the in-process limit and the HTTP floor, each in processes of its own."""

import http.client
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest import processes
from loadtest.answers import ModelList, Result, ServedModel, WrongAnswer, parse
from loadtest.bodies import Body
from service.binary import decode

PROJECT = Path(__file__).parent.parent
START_TIMEOUT_S = 120
ANSWER_TIMEOUT_S = 30
POLL_S = 0.02
SHOWN_OF_LOG = 3000
HOME = "bentoml"


class ContenderFailed(Exception):
    """Something to be measured does not start, or does not do what it should; says why."""


@dataclass(frozen=True)
class Service:
    """The service where it answers. `process` and `cold_start_s` are None where somebody else started it."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    cold_start_s: float | None = None

    @property
    def pids(self) -> list[int]:
        """Its processes, none where somebody else started it."""
        return processes.tree(self.process.pid) if self.process else []

    def classify_url(self, model: str) -> str:
        return f"{self.url}/v1/models/{model}/classify"

    def models(self) -> list[ServedModel]:
        """Raises ContenderFailed."""
        try:
            return parse(ModelList, self._ask("GET", "/v1/models")[1]).models
        except (OSError, http.client.HTTPException, WrongAnswer) as error:
            raise ContenderFailed(f"no TrueOdds answers at {self.url}: {str(error) or type(error).__name__}") from error

    def check(self, model: str, body: Body) -> int:
        """The bytes of a right answer. Raises ContenderFailed unless each image posted is answered with predictions."""
        status, answer = self.post(model, body)
        try:
            if status != 200:
                raise WrongAnswer(f"status {status}")
            if body.accept:
                _check_binary(answer, body.images)
            else:
                _check_json(answer, body.images)
        except (WrongAnswer, ValueError, LookupError, TypeError) as error:
            shown = answer[:300].decode("utf-8", "replace")
            raise ContenderFailed(f"{model} answers wrongly, so nothing is measured ({error}): {shown}") from error
        return len(answer)

    def post(self, model: str, body: Body) -> tuple[int, bytes]:
        """The first file of a body → status and answer. Raises ContenderFailed."""
        try:
            return self._ask("POST", f"/v1/models/{model}/classify", body.files[0].read_bytes(), body.headers)
        except (OSError, http.client.HTTPException) as error:
            raise ContenderFailed(f"{self.url} does not answer: {str(error) or type(error).__name__}") from error

    def ready(self) -> bool:
        try:
            return self._ask("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        address = urlsplit(self.url)
        assert address.hostname
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname, address.port, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextmanager
def service(folder: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> Iterator[Service]:
    """Start the service as `make serve` does, with its BentoML home in the folder; stop it in the end.

    Port 0 is any free one; `settings` go before those of the environment. Raises ContenderFailed with the end of its
    log.
    """
    port = port or free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "service.log"
    environment = os.environ | {
        "BENTOML_HOME": str(folder / HOME),
        "BENTOML_DO_NOT_TRACK": "True",
        "TRUEODDS_COMPILED": str(folder / HOME / "trueodds"),
        "TRUEODDS_FEEDBACK": f"sqlite://{folder / HOME / 'feedback.sqlite3'}",
        **(settings or {}),
    }
    (folder / HOME).mkdir(exist_ok=True)
    started = time.monotonic()
    process = _start(["service", "--port", str(port)], log, environment=environment)
    try:
        while not Service(url).ready():
            if process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
                raise ContenderFailed(f"the service did not become ready (exit {process.poll()}):\n{_tail(log)}")
            time.sleep(POLL_S)
        cold_start_s = time.monotonic() - started
        # The first worker answers before the last is ready.
        processes.wait_until_still(processes.tree(process.pid))
        yield Service(url, process, cold_start_s)
    finally:
        processes.stop(process)


class Limit:
    """The in-process limit of one model: as many processes as the service has workers."""

    def __init__(self, workers: list[subprocess.Popen[bytes]], log: Path) -> None:
        self._workers = workers
        self._log = log

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def rate(self, kind: str, batch: int, seconds: float) -> float:
        """Images each second of a kind of loadtest.limit: "alone" by one worker, others by all.

        Raises ContenderFailed.
        """
        working = self._workers[:1] if kind == "alone" else self._workers
        for worker in working:
            assert worker.stdin
            worker.stdin.write(f"{kind} {batch} {seconds}\n".encode())
            worker.stdin.flush()
        answers = [_line(worker, self._log, seconds + START_TIMEOUT_S).split() for worker in working]
        return sum(int(images) / float(took) for images, took in answers)


@contextmanager
def limit(model: str, workers: int, folder: Path) -> Iterator[Limit]:
    """Raises ContenderFailed where the model cannot be loaded."""
    log = folder / f"limit-{model}.log"
    with ExitStack() as stack:
        started = [_piped(["loadtest.limit", model, str(cache_of(folder))], log, stack) for _ in range(workers)]
        for worker in started:
            _line(worker, log, START_TIMEOUT_S)
        yield Limit(started, log)


@dataclass(frozen=True)
class Floor:
    """The HTTP floor: as many processes as the service has workers."""

    port: int
    pids: list[int]

    def url(self, answer_bytes: int) -> str:
        """Where answers have so many bytes."""
        return f"http://127.0.0.1:{self.port}/{answer_bytes}"


@contextmanager
def floor(workers: int, folder: Path) -> Iterator[Floor]:
    """Raises ContenderFailed."""
    log = folder / "floor.log"
    with ExitStack() as stack:
        process = _piped(["loadtest.floor", str(workers), str(folder / "floor.board")], log, stack)
        port = int(_line(process, log, START_TIMEOUT_S))
        yield Floor(port, processes.tree(process.pid))


def cache_of(folder: Path) -> Path:
    """Where the service keeps its optimised graphs; the limit runs the same ones."""
    return folder / HOME / "trueodds"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_json(answer: bytes, images: int) -> None:
    document = json.loads(answer)
    results = document["results"] if images > 1 else [document]
    if len(results) != images:
        raise WrongAnswer(f"{len(results)} results")
    for result in results:
        parse(Result, json.dumps(result).encode())


def _check_binary(answer: bytes, images: int) -> None:
    arrays = decode(answer)["arrays"]
    if len(arrays["probabilities"]) != images or arrays["failed"].any():
        raise WrongAnswer(f"{len(arrays['probabilities'])} results, {arrays['failed'].sum()} of them failures")


def _start(
    module: list[str], log: Path, piped: bool = False, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """`python -m MODULE...` in a session of its own, so that Ctrl-C reaches the benchmark alone."""
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  modules of this project  # nosec B603
            [sys.executable, "-m", *module],
            cwd=PROJECT,
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
        )


def _piped(module: list[str], log: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    """One that is spoken with by lines; ended with the stack."""
    process = _start(module, log, piped=True)
    stack.enter_context(process)  # closes the pipes
    stack.callback(processes.stop, process)
    return process


def _line(process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> bytes:
    """The next line it says. Raises ContenderFailed when it ends or is silent for too long."""
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        # Each says one short line at a time, so none is waiting in the buffer.
        line = process.stdout.readline() if selector.select(timeout_s) else b""
    if not line:
        raise ContenderFailed(f"{process.args!r} says nothing (exit {process.poll()}):\n{_tail(log)}")
    return line


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-SHOWN_OF_LOG:]
