"""service.health: what a container asks to know whether the service is well, whatever its port and certificate."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.health import ADDRESS, FOLDERS
from tests.conftest import ROOT, environment, free_port, stop
from tests.test_tls import Authority

pytestmark = pytest.mark.slow


class Contained:
    """A service whose health is asked as in its container: with its environment, and nothing else known."""

    def __init__(self, process: subprocess.Popen[bytes], given: dict[str, str], log: Path) -> None:
        self.process = process
        self.log = log
        self._environment = given

    def asked(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service.health", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=20, check=False
        )

    def is_well(self) -> bool:
        return self.asked().returncode == 0

    def gets_well(self) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.is_well():
                return True
            time.sleep(0.2)
        return False


@contextmanager
def contained(home: Path, settings: dict[str, str], *arguments: str) -> Iterator[Contained]:
    """With temporary files of its own."""
    given = environment(home, {"TRUEODDS_WORKERS": "1", "TMPDIR": str(home), **settings})
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *arguments],
            cwd=ROOT,
            env=given,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Contained(process, given, home / "log")
    finally:
        stop(process)


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    """A certificate that nobody could verify."""
    certificate, key = Authority(tmp_path, "unknown").issue("of-another-name")
    return {"TRUEODDS_TLS_CERT": str(certificate), "TRUEODDS_TLS_KEY": str(key)}


def test_it_is_well_from_when_all_is_loaded_until_it_ends(tmp_path: Path) -> None:
    """On any port, with and without one for operators, listening to all."""
    admin = {"TRUEODDS_ADMIN_PORT": str(free_port()), "TRUEODDS_DRAIN_S": "3"}
    with contained(tmp_path, admin, "--port", str(free_port()), "--host", "0.0.0.0") as service:
        assert not service.is_well()
        assert service.gets_well()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ended = service.asked()
        assert ended.returncode == 1
        assert ended.stderr == "unwell: /readyz answers 503\n"
        assert service.process.wait(15) == 0
        assert not service.is_well()


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
def test_it_is_well_under_tls(tmp_path: Path, tls: dict[str, str], mutual: bool) -> None:
    """Also where clients need a certificate, which this has not; a worker that stands still is noticed there too."""
    authority = {"TRUEODDS_TLS_CLIENT_CA": str(tmp_path / "unknown.pem")} if mutual else {}
    with contained(tmp_path, tls | authority, "--port", str(free_port())) as service:
        assert service.gets_well(), service.log.read_text()
        (worker,) = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGSTOP)
        try:
            assert not service.is_well()
        finally:
            os.kill(int(worker), signal.SIGCONT)


def test_what_others_left_is_not_asked(tmp_path: Path) -> None:
    """A service that was killed with all its workers has left where it was."""
    old = tmp_path / FOLDERS.replace("*", "old")
    old.mkdir()
    (old / ADDRESS).write_text("http://127.0.0.1:1")
    os.utime(old / ADDRESS, (1, 1))
    with contained(tmp_path, {}, "--port", str(free_port())) as service:
        assert service.gets_well()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", b"nonsense"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "https://127.0.0.1:{}", "https://127.0.0.1:{} mutual"])
def test_what_is_no_answer_is_not_well(tmp_path: Path, answer: bytes, address: str) -> None:
    """Nor what the supervisor says in the clear where there should be TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asking = subprocess.Popen(
            [sys.executable, "-m", "service.health", address.format(server.getsockname()[1])],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        client, _ = server.accept()
        with client:
            client.recv(4096)
            client.sendall(answer)
        told = asking.communicate(timeout=20)[1]
    assert asking.returncode == 1
    assert re.fullmatch(r"unwell: [^\n]*\n", told)


def test_the_image_asks_it() -> None:
    """Where the service is started by the same interpreter in the same folder."""
    template = (ROOT / "deploy" / "Dockerfile.template").read_text()
    assert 'CMD ["python", "-m", "service.health"]' in template
    assert 'ENTRYPOINT ["python", "-m", "service"]' in template
