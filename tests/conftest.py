"""The service as its users meet it: a process of its own behind a real socket."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from service import bundle
from service.documents import Calibration
from service.settings import BUNDLES
from tests import container
from tests.container import Container

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
START_TIMEOUT_S = 60
# What one server has compiled serves the others.
COMPILED = ROOT / ".cache" / "tests" / "compiled"


@dataclass(frozen=True)
class Server:
    """A running service: where it answers, its process (or the one that runs its container) and its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    container: Container | None = None

    @property
    def pid(self) -> int:
        """Of the service's own first process."""
        return self.container.pid if self.container else self.process.pid

    def terminate(self) -> None:
        """As whoever runs it ends it."""
        if self.container:
            self.container.terminate()
        else:
            self.process.send_signal(signal.SIGTERM)

    def post(self, model: str, body: bytes, content_type: str = "image/png", query: str = "") -> httpx.Response:
        url = f"{self.url}/v1/models/{model}/classify{query}"
        return httpx.post(url, content=body, headers={"content-type": content_type}, timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The present environment with only the given settings of ours, and a BentoML home of its own."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRUEODDS_")}
    ours = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "TRUEODDS_COMPILED": str(COMPILED)}
    ours["TRUEODDS_FEEDBACK"] = f"sqlite://{home / 'feedback.sqlite3'}"
    # Who waits for the end of a test has no load balancer.
    ours["TRUEODDS_DRAIN_S"] = "0"
    return inherited | ours | dict(settings)


@contextmanager
def serving(
    home: Path, settings: Mapping[str, str] | None = None, launcher: Sequence[str] = ("service",)
) -> Iterator[Server]:
    """Start the service as `make serve` does, or by another module, wait until it is ready, and stop it.

    In a container where KIT_IMAGE names one.
    """
    port = free_port()
    contained = Container(f"trueodds-kit-{port}") if container.IMAGE else None
    command = [sys.executable, "-m", *launcher, "--port", str(port)]
    if contained:
        command = contained.command(port, {"TRUEODDS_DRAIN_S": "0", **(settings or {})})
    home.mkdir(parents=True, exist_ok=True)
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(home, settings or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        yield Server(url, process, log, contained)
    finally:
        stop(process)
        if contained:
            contained.remove()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"the service did not become ready (exit {process.poll()}); its log:\n{log.read_text()[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def committed(model: str) -> Path:
    """The newest bundle of a model in this repository."""
    return bundle.newest(BUNDLES, (model,))[model]


def calibration(model: str) -> Calibration:
    """Of the committed bundle."""
    found = bundle.discover(BUNDLES)[model].calibration
    assert found is not None
    return found


def fixtures(model: str) -> list[tuple[bytes, str]]:
    """Test images of a model and their labels."""
    return [(path.read_bytes(), path.stem.partition("-")[2]) for path in sorted((FIXTURES / model).glob("*.png"))]


def data_dir() -> Path | None:
    """The full data sets, where this machine has them."""
    directory = Path(os.environ.get("DATA_DIR", ROOT.parent / "shared" / "data"))
    return directory if (directory / "mnist.npz").exists() else None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("bentoml")) as running:
        yield running


def interrupted(monkeypatch: pytest.MonkeyPatch, owner: ModuleType, name: str, at: int) -> list[int]:
    """Of a module's function the call of this number, from 1, is Ctrl-C; returns the numbers of the calls so far."""
    function, calls = getattr(owner, name), list[int]()

    def counted(*given: object) -> object:
        calls.append(len(calls) + 1)
        if calls[-1] == at:
            raise KeyboardInterrupt
        return function(*given)

    monkeypatch.setattr(owner, name, counted)
    return calls
