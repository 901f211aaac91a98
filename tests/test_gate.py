"""service.gate: who may, over a real socket; on the direct way too."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.keys import LOOK_AFTER_S, main
from tests.conftest import ROOT, Server, environment, fixtures, serving

IMAGE = fixtures("digits")[0][0]
CLASSIFY = "/v1/models/digits/classify"
# What a change of the key file takes to be seen, and some.
SEEN_S = LOOK_AFTER_S + 0.3


class Guarded:
    """A service with keys, and where they are kept."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self.file = file

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = IMAGE if method == "POST" else b""
        return httpx.request(method, self.server.url + path, headers=named, content=body, timeout=30)

    def post(self, key: str) -> httpx.Response:
        return self.ask("POST", CLASSIFY, authorization=f"Bearer {key}", content_type="image/png")


def make(file: Path, name: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["--file", str(file), "add", name, *more]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    home = tmp_path_factory.mktemp("guarded")
    file = home / "keys.json"
    file.write_text('{"keys": {}}')
    settings = {
        "TRUEODDS_API_KEYS": str(file),
        "TRUEODDS_WORKERS": "2",
        "TRUEODDS_METRICS_ACCESS": "admin",
        "TRUEODDS_DOCS_ACCESS": "closed",
        "TRUEODDS_ACCESS_LOG_SAMPLE": "1",
    }
    with serving(home / "bentoml", settings) as running:
        yield Guarded(running, file)


def with_key(guarded: Guarded, name: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    key = make(guarded.file, name, capsys, *more)
    time.sleep(SEEN_S)
    return key


@contextmanager
def known_to_all_workers(guarded: Guarded, key: str) -> Iterator[list[httpx.Client]]:
    """Clients of a key on kept connections; workers share those evenly, so all know the key and its head."""
    headers = {"authorization": f"Bearer {key}", "content-type": "image/png"}
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=guarded.server.url, headers=headers, timeout=30))
            for _ in range(8)
        ]
        assert {client.post(CLASSIFY, content=IMAGE).status_code for client in clients * 3} == {200}
        yield clients


@pytest.mark.slow
def test_nobody_gets_in_without_a_key(guarded: Guarded) -> None:
    """401, and what to show; unknown paths and BentoML's routes are no way around."""
    for method, path in (("POST", CLASSIFY), ("GET", "/v1/models"), ("GET", "/x"), ("POST", "/classify_pixels")):
        response = guarded.ask(method, path)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == 'Bearer realm="trueodds"'
        assert response.json()["type"] == "urn:trueodds:problem:unauthorised"
    assert (
        "access-control-allow-origin" not in guarded.ask("GET", "/readyz", origin="https://elsewhere.example").headers
    )


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
def test_health_is_open(guarded: Guarded, path: str) -> None:
    """Whoever restarts it has no key."""
    assert guarded.ask("GET", path).status_code == 200


@pytest.mark.slow
def test_what_is_closed_is_not_there(guarded: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    """For nobody, whatever the scope; and what needs a scope is for those who have it."""
    key = with_key(guarded, "admin", capsys, "--scopes", "admin")
    infer = with_key(guarded, "infer", capsys, "--scopes", "infer")
    for path in ("/", "/docs.json", "/schema.json"):
        assert guarded.ask("GET", path, x_api_key=key).status_code == 404
    assert guarded.ask("GET", "/metrics").status_code == 401
    assert guarded.ask("GET", "/metrics", x_api_key=infer).status_code == 403
    assert guarded.ask("GET", "/metrics", x_api_key=key).status_code == 200
    assert guarded.post(key).status_code == 403


@pytest.mark.slow
def test_a_key_opens_in_either_header_and_never_in_the_query(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nowhere is it written down."""
    key = with_key(guarded, "either", capsys, "--scopes", "infer")
    assert guarded.post(key).status_code == 200
    assert guarded.ask("POST", CLASSIFY, x_api_key=key).status_code == 200
    assert guarded.ask("POST", CLASSIFY, authorization=f"bearer {key}").status_code == 200
    assert guarded.ask("POST", f"{CLASSIFY}?api_key={key}").status_code == 401
    assert guarded.ask("POST", CLASSIFY, authorization=f"Basic {key}").status_code == 401
    assert guarded.ask("POST", CLASSIFY, authorization=f"Bearer {key}", x_api_key=key).status_code == 401
    for wrong in ("", "x", key[:-1], key + "a", ". . ."):
        assert guarded.ask("POST", CLASSIFY, x_api_key=wrong).status_code == 401
    time.sleep(0.2)
    assert key not in guarded.server.log.read_text()
    assert key not in guarded.file.read_text()


def test_a_refusal_can_be_read_by_whoever_still_sends(guarded: Guarded) -> None:
    """It comes before the body has."""
    host, port = guarded.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        length = 8_000_000
        head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendall(bytes(length // 2))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 401
        assert response.getheader("connection") == "close"
        assert json.loads(response.read())["status"] == 401
        connection.sendall(bytes(length // 2))


@pytest.mark.slow
def test_a_revoked_key_is_refused_on_a_connection_that_knew_it(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    """The direct way remembers whole heads; their credentials it asks about again."""
    key = with_key(guarded, "passing", capsys, "--scopes", "infer")
    headers = {"authorization": f"Bearer {key}", "content-type": "image/png"}
    with httpx.Client(base_url=guarded.server.url, headers=headers, timeout=30) as client:
        assert [client.post(CLASSIFY, content=IMAGE).status_code for _ in range(20)] == [200] * 20
        assert main(["--file", str(guarded.file), "revoke", "passing"]) == 0
        time.sleep(SEEN_S)
        assert client.post(CLASSIFY, content=IMAGE).status_code == 401


@pytest.mark.slow
def test_a_revoked_key_is_refused_by_workers_that_nobody_asked_meanwhile(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each looks at the file when it is asked: none answers by what it knew, however long ago that was."""
    key = with_key(guarded, "idle", capsys, "--scopes", "infer")
    with known_to_all_workers(guarded, key) as clients:
        time.sleep(2 * LOOK_AFTER_S)
        assert main(["--file", str(guarded.file), "revoke", "idle"]) == 0
        assert [client.post(CLASSIFY, content=IMAGE).status_code for client in clients] == [401] * len(clients)


@pytest.mark.slow
def test_a_revoked_key_is_refused_by_busy_workers_within_a_second(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    """On kept connections that ask all the time, directly."""
    key = with_key(guarded, "busy", capsys, "--scopes", "infer")
    with known_to_all_workers(guarded, key) as clients:
        assert main(["--file", str(guarded.file), "revoke", "busy"]) == 0
        revoked, last = time.monotonic(), 0.0
        while time.monotonic() - revoked < 2 * LOOK_AFTER_S:
            for client in clients:
                if client.post(CLASSIFY, content=IMAGE).status_code == 200:
                    last = time.monotonic() - revoked
    assert last <= SEEN_S


@pytest.mark.slow
def test_keys_may_overlap_and_another_ones_end_changes_nothing(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    """To rotate: a second key, its clients, the first one's end."""
    old = with_key(guarded, "rotation-1", capsys, "--scopes", "infer")
    new = with_key(guarded, "rotation-2", capsys, "--scopes", "infer")
    assert guarded.post(old).status_code == guarded.post(new).status_code == 200
    assert main(["--file", str(guarded.file), "revoke", "rotation-1"]) == 0
    time.sleep(SEEN_S)
    assert [guarded.post(old).status_code, guarded.post(new).status_code] == [401, 200]


@pytest.mark.slow
def test_a_file_that_makes_no_sense_leaves_the_keys(guarded: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    """With a warning that quotes nothing of it."""
    key = with_key(guarded, "steady", capsys, "--scopes", "infer")
    good = guarded.file.read_bytes()
    # A worker looks at the file when it is asked, and this is to be known to both.
    assert {guarded.post(key).status_code for _ in range(20)} == {200}
    try:
        _spoil(guarded, key)
    finally:
        guarded.file.write_bytes(good)
        guarded.file.chmod(0o600)
        time.sleep(SEEN_S)


def _spoil(guarded: Guarded, key: str) -> None:
    for bad in (b"{", b'{"keys": {"a": {"sha256": "trueodds_secret", "scopes": ["infer"]}}}', b"[]"):
        guarded.file.write_bytes(bad)
        time.sleep(SEEN_S)
        assert guarded.post(key).status_code == 200
    guarded.file.unlink()
    time.sleep(SEEN_S)
    assert guarded.post(key).status_code == 200
    log = guarded.server.log.read_text()
    assert "the API keys stay as they were" in log
    assert "trueodds_secret" not in log


@pytest.mark.slow
def test_a_rate_holds_for_all_workers_and_connections_together(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    """A burst passes, whatever worker each request meets; the rest is told when to come back."""
    limits = ("--scopes", "infer", "--requests-per-second", "0.5", "--burst", "12")
    key = with_key(guarded, "limited", capsys, *limits)
    headers = {"authorization": f"Bearer {key}", "content-type": "image/png"}
    clients = [httpx.Client(base_url=guarded.server.url, headers=headers, timeout=30) for _ in range(4)]
    answers = [client.post(CLASSIFY, content=IMAGE) for _ in range(5) for client in clients]
    for client in clients:
        client.close()
    statuses = [answer.status_code for answer in answers]
    assert 12 <= statuses.count(200) <= 14
    assert statuses.count(200) + statuses.count(429) == 20
    assert answers[0].headers["ratelimit-policy"] == '"rate";q=12;w=24'
    assert answers[0].headers["ratelimit"] == '"rate";r=11;t=2'
    direct = answers[4].headers["ratelimit"]
    assert direct.startswith('"rate";r=7;')
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert refused.headers["ratelimit"].startswith('"rate";r=0;')
    assert refused.json()["type"] == "urn:trueodds:problem:too-many-requests"


@pytest.mark.slow
def test_bentomls_route_is_behind_the_gate(guarded: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    """With a key's scope and limits, as any other."""
    key = with_key(guarded, "bentoml", capsys, "--scopes", "infer", "--requests-per-second", "0.01", "--burst", "1")
    asked = {"pixels": [[0] * 28] * 28, "model": "digits"}
    responses = [
        httpx.post(f"{guarded.server.url}/classify_pixels", json=asked, headers={"x-api-key": key}, timeout=30)
        for _ in range(2)
    ]
    assert [response.status_code for response in responses] == [200, 429]
    assert responses[0].headers["ratelimit"] == '"rate";r=0;t=100'


@pytest.mark.slow
def test_requests_under_way_are_bounded(guarded: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is being sent counts; when it has gone its place is free."""
    key = with_key(guarded, "narrow", capsys, "--scopes", "infer", "--concurrent", "2")
    host, port = guarded.server.url.removeprefix("http://").split(":")
    head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: 9\r\n\r\n".encode()
    senders = [socket.create_connection((host, int(port))) for _ in range(2)]
    for sender in senders:
        sender.sendall(head)
    time.sleep(0.3)
    refused = guarded.post(key)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["ratelimit-policy"] == '"concurrent";q=2;qu="concurrent-requests"'
    for sender in senders:
        sender.close()
    time.sleep(0.3)
    with httpx.Client(base_url=guarded.server.url, headers={"x-api-key": key, "content-type": "image/png"}) as client:
        assert [client.post(CLASSIFY, content=IMAGE).status_code for _ in range(9)] == [200] * 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"TRUEODDS_API_KEYS": "/nowhere/keys.json"}, "cannot be read"),
        ({"TRUEODDS_METRICS_ACCESS": "admin"}, "nobody could be"),
    ],
)
def test_a_gate_that_could_not_hold_keeps_the_service_from_starting(
    settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    """Told in one line."""
    given = environment(tmp_path, settings)
    ended = subprocess.run(
        [sys.executable, "-m", "service", "--port", "0"],
        cwd=ROOT,
        env=given,
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert ended.returncode == 1
    assert told in ended.stderr
    assert os.linesep not in ended.stderr.strip()
