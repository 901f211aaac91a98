"""A port for those who run the service, and one for those who use it: real sockets, whatever was asked before."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from service.keys import LOOK_AFTER_S, main
from tests.conftest import ROOT, Server, environment, fixtures, free_port, serving

pytestmark = pytest.mark.slow

IMAGE = fixtures("digits")[0][0]
CLASSIFY = "/v1/models/digits/classify"
HEALTH = ("/livez", "/healthz", "/readyz")
OPERATORS = ("/metrics", "/", "/docs.json", "/schema.json")
USERS = ("/v1/models", "/v1/models/digits")
# Enough connections to meet both workers.
OFTEN = 12


@dataclass(frozen=True)
class Split:
    """A service with two ports, of which its own URL is the users'."""

    server: Server
    operators: str

    @property
    def users(self) -> str:
        return self.server.url


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Split]:
    port = free_port()
    settings = {"TRUEODDS_WORKERS": "2", "TRUEODDS_ADMIN_PORT": str(port)}
    with serving(tmp_path_factory.mktemp("split"), settings) as server:
        yield Split(server, f"http://127.0.0.1:{port}")


def statuses(url: str, path: str, method: str = "GET") -> set[int]:
    """Of several requests, each on a connection of its own."""
    seen = set()
    for _ in range(OFTEN):
        with closing(HTTPConnection(url.removeprefix("http://"), timeout=30)) as connection:
            connection.request(method, path)
            seen.add(connection.getresponse().status)
    return seen


def exchanged(url: str, request: bytes, times: int = 1) -> list[int]:
    """The statuses of the same bytes sent again and again by one connection."""
    host, port = url.removeprefix("http://").split(":")
    seen = []
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as answers:
        for _ in range(times):
            connection.sendall(request)
            seen.append(int(answers.readline().split()[1]))
            length = 0
            while (line := answers.readline().strip().lower()) != b"":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            answers.read(length)
    return seen


def test_each_port_has_its_own(split: Split) -> None:
    """And health is on both."""
    for path in HEALTH:
        assert statuses(split.users, path) == statuses(split.operators, path) == {200}, path
    for path in OPERATORS:
        assert statuses(split.operators, path) == {200}, path
        assert statuses(split.users, path) == {404}, path
        assert statuses(split.users, path, "POST") == statuses(split.users, path, "HEAD") == {404}, path
    for path in USERS:
        assert statuses(split.users, path) == {200}, path
        assert statuses(split.operators, path) == {404}, path
    for path in ("/x", "/v1/models/digits/classify", "/classify_pixels"):
        assert statuses(split.operators, path, "POST") == {404}, path
    assert split.server.post("digits", IMAGE).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "/metrics?x=1",
        "/metrics#x",
        "/%6detrics",
        "/%6Detrics",
        "//metrics",
        "/metrics/",
        "/./metrics",
        "/v1/../metrics",
        "/metrics;x",
        "/METRICS",
        "/%2Fmetrics",
        "/metrics%00",
        "http://other.example/metrics",
        "http://127.0.0.1/metrics",
        "metrics",
        "*",
    ],
)
def test_no_way_of_writing_a_path_leads_to_the_operators_port(split: Split, target: str) -> None:
    """Nor a Host that names it."""
    for host in ("x", split.operators.removeprefix("http://")):
        request = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nx-forwarded-host: {host}\r\n\r\n".encode()
        assert exchanged(split.users, request)[0] in (400, 404)


def test_what_is_remembered_of_one_port_is_not_known_to_the_other(split: Split) -> None:
    """The same bytes that are answered directly on the one are refused on the other, and the other way round."""
    head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(IMAGE)}\r\n\r\n"
    posted = head.encode() + IMAGE
    asked = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    with_body = b"GET /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    for _ in range(2):
        for _ in range(OFTEN):
            assert exchanged(split.users, posted, 3) == [200] * 3
            assert exchanged(split.operators, posted) == [404]
            assert exchanged(split.operators, asked, 2) == [200] * 2
            assert exchanged(split.operators, with_body, 2) == [200] * 2
            assert exchanged(split.users, asked, 2) == [404] * 2
            assert exchanged(split.users, with_body)[0] == 404


def test_metrics_count_what_all_workers_answered_on_either_port(split: Split) -> None:
    """Whichever worker is asked."""

    def counted(model: str, status: int) -> float:
        time.sleep(0.2)
        lines = httpx.get(f"{split.operators}/metrics").text.splitlines()
        start = f'trueodds_requests_total{{model="{model}",status="{status}"}} '
        return sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))

    before = counted("digits", 200), counted("", 404)
    for _ in range(OFTEN):
        assert split.server.post("digits", IMAGE).status_code == 200
    statuses(split.users, "/metrics")
    statuses(split.operators, "/v1/models")
    assert (counted("digits", 200), counted("", 404)) == (before[0] + OFTEN, before[1] + 2 * OFTEN)


def test_keys_and_their_scopes_hold_on_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a setting keeps for a scope, or for nobody, is so on the operators' port, and not there on the other."""
    file, port = tmp_path / "keys.json", free_port()
    keys = {}
    for scope in ("admin", "infer"):
        assert main(["--file", str(file), "add", scope, "--scopes", scope]) == 0
        keys[scope] = capsys.readouterr().out.strip()
    settings = {
        "TRUEODDS_WORKERS": "1",
        "TRUEODDS_ADMIN_PORT": str(port),
        "TRUEODDS_API_KEYS": str(file),
        "TRUEODDS_METRICS_ACCESS": "admin",
        "TRUEODDS_DOCS_ACCESS": "closed",
    }
    with serving(tmp_path / "home", settings) as server:
        operators = f"http://127.0.0.1:{port}"
        asked = [httpx.get(f"{operators}/metrics").status_code]
        asked += [httpx.get(f"{operators}/metrics", headers={"x-api-key": keys[each]}).status_code for each in keys]
        assert asked == [401, 200, 403]
        for key in keys.values():
            shown = {"x-api-key": key}
            assert httpx.get(f"{server.url}/metrics", headers=shown).status_code == 404
            assert httpx.get(f"{operators}/docs.json", headers=shown).status_code == 404
            assert httpx.get(f"{operators}/v1/models", headers=shown).status_code == 404
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": keys["infer"]}).status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        # A key that is withdrawn is so on both ports.
        assert main(["--file", str(file), "revoke", "admin"]) == 0
        time.sleep(LOOK_AFTER_S + 0.3)
        assert httpx.get(f"{operators}/metrics", headers={"x-api-key": keys["admin"]}).status_code == 401


def test_both_end_with_the_service(tmp_path: Path) -> None:
    """A kept connection to the operators' port does not hold it up, and is told."""
    port = free_port()
    with serving(tmp_path, {"TRUEODDS_WORKERS": "1", "TRUEODDS_ADMIN_PORT": str(port)}) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as kept:
            assert kept.get("/metrics").status_code == 200
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://127.0.0.1:{port}/readyz")
            last = kept.get("/readyz")
            assert (last.status_code, last.headers["connection"]) == (503, "close")
        assert server.process.wait(10) == 0
        assert time.monotonic() - started < 5


def started(settings: dict[str, str], home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment(home, settings),
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"TRUEODDS_ADMIN_PORT": "x"}, "TRUEODDS_ADMIN_PORT='x': "),
        ({"TRUEODDS_ADMIN_PORT": "-1"}, "choose another with TRUEODDS_ADMIN_HOST, TRUEODDS_ADMIN_PORT"),
        ({"TRUEODDS_ADMIN_PORT": "taken"}, "choose another with TRUEODDS_ADMIN_HOST, TRUEODDS_ADMIN_PORT"),
        ({"TRUEODDS_ADMIN_PORT": "1", "TRUEODDS_ADMIN_HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1:1"),
        ({"TRUEODDS_ADMIN_PORT": "3001", "BENTOML_CONFIG_OPTIONS": "x=1"}, "BentoML's launcher serves by one port"),
    ],
)
def test_a_port_that_cannot_be_keeps_the_service_from_starting(
    settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    """Told in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = {name: value.replace("taken", port) for name, value in settings.items()}
        ended = started(given, tmp_path, "service", "--port", "0")
    assert ended.returncode == 1
    assert told in ended.stderr
    assert os.linesep not in ended.stderr.strip()


def test_bentoml_serve_refuses_it(tmp_path: Path) -> None:
    """Rather than show on its one port what was meant for another."""
    ended = started({"TRUEODDS_ADMIN_PORT": "3001"}, tmp_path, "bentoml", "serve", ".", "--port", str(free_port()))
    assert ended.returncode != 0
    assert "TRUEODDS_ADMIN_PORT means nothing there" in ended.stdout + ended.stderr
