"""service.tokens: what a provider signed for this service lets in, as far as it says and as long as it holds."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from service.errors import NotReady, SettingError, Unauthorised
from service.gate import check
from service.settings import Settings
from service.tokens import LEEWAY_S, REFETCH_S, STALE_S, Provider, ProviderTokens
from tests.conftest import fixtures, serving

ISSUER, AUDIENCE = "https://id.example/", "trueodds"
RSA, OTHER = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())
HEAD = {"content-type": "image/png"}


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, **more}


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "a", **claims: Any) -> str:
    usual = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60, "scope": "openid infer"}
    given = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(given, key, algorithm, headers={"kid": kid} if kid else None)


class Identity:
    """A provider's JWKS over HTTP, which counts who asks."""

    def __init__(self) -> None:
        self.keys = [public(RSA, "a"), public(EC, "b", alg="ES256", use="sig")]
        self.asked = 0
        self.status = 200
        identity = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                identity.asked += 1
                body = json.dumps({"keys": identity.keys}).encode()
                self.send_response(identity.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the library's
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"


@pytest.fixture
def identity() -> Iterator[Identity]:
    given = Identity()
    thread = threading.Thread(target=given.server.serve_forever, args=(0.02,))
    thread.start()
    yield given
    given.server.shutdown()
    thread.join()
    given.server.server_close()


class Checked:
    """Tokens checked at a time of the test's choosing."""

    def __init__(self, identity: Identity) -> None:
        self.now = 0.0
        self.tokens = ProviderTokens(Provider(ISSUER, AUDIENCE, identity.url), clock=lambda: self.now)

    async def scopes(self, token: str) -> frozenset[str]:
        return (await self.tokens.grant(token.encode())).scopes

    async def refused(self, token: str) -> None:
        with pytest.raises(Unauthorised) as refusal:
            await self.tokens.grant(token.encode())
        assert token not in refusal.value.detail


def test_what_holds_lets_in(identity: Identity) -> None:
    """By RSA or a curve; scopes from either claim, in either form."""

    async def scenario() -> None:
        checked = Checked(identity)
        assert await checked.scopes(signed()) == {"openid", "infer"}
        assert await checked.scopes(signed(algorithm="PS256")) == {"openid", "infer"}
        assert await checked.scopes(signed(EC, "ES256", "b", scope=None, scp=["infer", 3])) == {"infer"}
        assert await checked.scopes(signed(scope=None, scp="admin")) == {"admin"}
        assert await checked.scopes(signed(scope=None)) == frozenset()
        assert await checked.scopes(signed(exp=time.time() - LEEWAY_S / 2))
        assert identity.asked == 1

    asyncio.run(scenario())


def test_what_does_not_hold_is_refused(identity: Identity) -> None:
    """Another issuer, audience, key or algorithm, out of its time, or no token at all."""
    known = identity.keys[0]["n"]

    async def scenario() -> None:
        checked = Checked(identity)
        for claims in (
            {"iss": "https://evil.example"},
            {"iss": None},
            {"aud": "others"},
            {"aud": None},
            {"exp": None},
            {"exp": time.time() - 2 * LEEWAY_S},
            {"nbf": time.time() + 2 * LEEWAY_S},
        ):
            await checked.refused(signed(**claims))
        await checked.refused(signed(OTHER))
        await checked.refused(signed(EC, "ES256", "a"))
        await checked.refused(signed(RSA, "RS256", "b"))
        await checked.refused(signed(known, "HS256"))
        await checked.refused(jwt.encode({"iss": ISSUER, "aud": AUDIENCE}, "", "none"))
        header, payload, signature = signed().split(".")
        deep = base64.urlsafe_b64encode(b"[" * 40_000).decode()
        listed = base64.urlsafe_b64encode(b'{"alg": ["RS256"], "kid": {}, "crit": 3}').decode().rstrip("=")
        for token in (
            f"{deep}.b.c",
            f"{listed}.{payload}.{signature}",
            "é.é.é",
            "a.b.c",
            "..",
            f"{header}.{payload}.",
            f"{header}.{payload[:-4]}AAAA.{signature}",
        ):
            await checked.refused(token)

    asyncio.run(scenario())


def test_a_new_key_is_fetched_when_a_token_names_it_but_not_for_every_token(identity: Identity) -> None:
    """Unknown keys, however many, cost the provider one request in REFETCH_S; what is old is fetched anew."""

    async def scenario() -> None:
        checked = Checked(identity)
        await checked.scopes(signed())
        identity.keys = [public(OTHER, "c")]
        for number in range(20):
            await checked.refused(signed(OTHER, kid=f"x{number}"))
        assert identity.asked == 1
        checked.now += REFETCH_S + 1
        await asyncio.gather(*(checked.scopes(signed(OTHER, kid="c")) for _ in range(20)))
        assert identity.asked == 2
        assert await checked.scopes(signed(OTHER, kid=None))
        await checked.refused(signed())
        identity.keys = []
        checked.now += STALE_S + 1
        # This one still finds the key, and has the keys fetched.
        assert await checked.scopes(signed(OTHER, kid="c"))
        await asyncio.sleep(0.3)
        assert identity.asked == 3
        await checked.refused(signed(OTHER, kid="c"))

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_token_is_verified_once_for_as_long_as_its_key_is_known(identity: Identity) -> None:
    """Until it expires or the keys are fetched anew: then the key it names must be listed still."""

    async def scenario() -> None:
        checked = Checked(identity)
        token = signed()
        first = await checked.tokens.grant(token.encode())
        assert await checked.tokens.grant(token.encode()) is first
        soon = signed(exp=int(time.time()) - LEEWAY_S + 2)
        assert await checked.scopes(soon)
        await asyncio.sleep(2.1)
        await checked.refused(soon)
        identity.keys = [public(OTHER, "c")]
        checked.now += STALE_S + 1
        # What is known is let in, and has the keys fetched.
        assert await checked.scopes(token)
        await asyncio.sleep(0.3)
        assert identity.asked == 2
        await checked.refused(token)

    asyncio.run(scenario())


def test_only_so_many_tokens_are_known(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is verified again."""
    monkeypatch.setattr("service.tokens.MOST_KNOWN", 2)

    async def scenario() -> None:
        tokens = Checked(identity).tokens
        made = [signed(jti=str(number)).encode() for number in range(3)]
        grants = [await tokens.grant(token) for token in made]
        assert await tokens.grant(made[2]) is grants[2]
        assert await tokens.grant(made[1]) is grants[1]
        assert await tokens.grant(made[0]) is not grants[0]

    asyncio.run(scenario())


def test_keys_that_cannot_be_fetched(identity: Identity) -> None:
    """Before the first the service is not ready for tokens; later the last ones stay."""

    async def scenario() -> None:
        checked = Checked(identity)
        identity.status = 500
        with pytest.raises(NotReady):
            await checked.scopes(signed())
        identity.status = 200
        checked.now += REFETCH_S + 1
        assert await checked.scopes(signed())
        identity.status = 302
        checked.now += STALE_S + 1
        for _ in range(3):
            assert await checked.scopes(signed())
            await asyncio.sleep(0.1)
        assert identity.asked == 3

    asyncio.run(scenario())


def test_weak_and_foreign_keys_are_not_used(identity: Identity) -> None:
    """Short RSA, shared secrets, keys for encryption, and what is no key."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    secret = {"kty": "oct", "kid": "s", "k": "c2VjcmV0LXRoYXQtaXMtbG9uZy1lbm91Z2gtZm9yLUhNQUM"}
    identity.keys = [public(weak, "w"), secret, public(RSA, "e", use="enc"), {"kty": "EC", "kid": "n"}, public(EC, "b")]

    async def scenario() -> None:
        checked = Checked(identity)
        assert await checked.scopes(signed(EC, "ES256", "b"))
        await checked.refused(signed(RSA, kid="e"))
        await checked.refused(signed(b"secret-that-is-long-enough-for-HMAC", "HS256", "s"))

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://id.example/jwks", "ftp://x/", "file://host/x", "jwks.json", "https:///x"])
def test_a_place_nobody_can_vouch_for_is_refused(url: str) -> None:
    """Keys come encrypted, or from this machine."""
    with pytest.raises(SettingError, match="TRUEODDS_OIDC_JWKS_URL"):
        Provider(ISSUER, AUDIENCE, url).check()


@pytest.mark.slow
def test_a_token_opens_the_service(tmp_path: Path) -> None:
    """Over a real socket, on the direct way too, until it expires."""
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [public(RSA, "a")]}))
    image = fixtures("digits")[0][0]
    settings = {
        "TRUEODDS_OIDC_ISSUER": ISSUER,
        "TRUEODDS_OIDC_AUDIENCE": AUDIENCE,
        "TRUEODDS_OIDC_JWKS_URL": file.as_uri(),
        "TRUEODDS_WORKERS": "1",
    }
    with serving(tmp_path / "bentoml", settings) as running, httpx.Client(base_url=running.url) as client:

        def status(token: str) -> int:
            headers = {**HEAD, "authorization": f"Bearer {token}"}
            return client.post("/v1/models/digits/classify", content=image, headers=headers).status_code

        soon = signed(exp=time.time() - LEEWAY_S + 4)
        assert [status(soon) for _ in range(5)] == [200] * 5
        assert status(signed(scope="feedback")) == 403
        assert status("x.y.z") == status("trueodds_x") == 401
        response = client.get("/v1/models")
        assert response.status_code == 401
        time.sleep(4.5)
        assert status(soon) == 401
        assert status(signed()) == 200


LIMITS = {"TRUEODDS_OIDC_REQUESTS_PER_SECOND": "0.5", "TRUEODDS_OIDC_BURST": "6", "TRUEODDS_OIDC_CONCURRENT": "4"}
POLICY = '"rate";q=6;w=12, "concurrent";q=4;qu="concurrent-requests"'


def opened(folder: Path, more: dict[str, str]) -> dict[str, str]:
    """Settings of a service that one provider's tokens open."""
    file = folder / "jwks.json"
    file.write_text(json.dumps({"keys": [public(RSA, "a")]}))
    oidc = {"ISSUER": ISSUER, "AUDIENCE": AUDIENCE, "JWKS_URL": file.as_uri()}
    return {**{f"TRUEODDS_OIDC_{name}": value for name, value in oidc.items()}, **more}


@pytest.mark.slow
def test_each_subject_has_limits_whatever_tokens_it_shows(tmp_path: Path) -> None:
    """Over a real socket, by two workers together, on the direct way too; others' requests are not its own."""
    image = fixtures("digits")[0][0]
    with serving(tmp_path / "bentoml", opened(tmp_path, {**LIMITS, "TRUEODDS_WORKERS": "2"})) as running:

        def ask(subject: str, times: int) -> list[httpx.Response]:
            answers = []
            for number in range(times):
                headers = {**HEAD, "authorization": f"Bearer {signed(sub=subject, jti=str(number // 2))}"}
                with httpx.Client(base_url=running.url, headers=headers) as client:
                    answers += [client.post("/v1/models/digits/classify", content=image) for _ in range(2)]
            return answers

        for subject in ("alice", "bob"):
            answers = ask(subject, 5)
            statuses = [answer.status_code for answer in answers]
            assert statuses[:6] == [200] * 6
            assert statuses.count(200) <= 8
            assert statuses[-1] == 429
            assert {answer.headers["ratelimit-policy"] for answer in answers} == {POLICY}
            assert answers[0].headers["ratelimit"] == '"rate";r=5;t=2'
            assert answers[-1].headers["ratelimit"].startswith('"rate";r=0;')
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
            assert answers[-1].json()["type"] == "urn:trueodds:problem:too-many-requests"
        headers = {"authorization": f"Bearer {signed()}"}
        refused = httpx.get(f"{running.url}/v1/models", headers=headers)
        assert refused.status_code == 401
        assert "names no subject" in refused.json()["detail"]


@pytest.mark.slow
def test_requests_of_a_subject_under_way_are_bounded(tmp_path: Path) -> None:
    """Those that are being sent count, on any worker; when they have gone their places are free."""
    limits = {"TRUEODDS_OIDC_CONCURRENT": "2", "TRUEODDS_WORKERS": "2"}
    with serving(tmp_path / "bentoml", opened(tmp_path, limits)) as running:
        host, port = running.url.removeprefix("http://").split(":")

        def status(subject: str) -> int:
            headers = {"authorization": f"Bearer {signed(sub=subject)}"}
            return httpx.get(f"{running.url}/v1/models", headers=headers).status_code

        head = f"POST /v1/models/digits/classify HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {signed(sub='alice')}"
        senders = [socket.create_connection((host, int(port))) for _ in range(2)]
        for sender in senders:
            sender.sendall(f"{head}\r\ncontent-length: 9\r\n\r\n".encode())
        time.sleep(0.3)
        assert [status("alice"), status("bob"), status("alice")] == [429, 200, 429]
        for sender in senders:
            sender.close()
        time.sleep(0.3)
        assert [status("alice") for _ in range(9)] == [200] * 9


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"TRUEODDS_OIDC_CONCURRENT": "2"}, "together"), ({"TRUEODDS_OIDC_BURST": "2"}, "means nothing without")],
)
def test_limits_of_nobody_are_a_mistake(settings: dict[str, str], told: str) -> None:
    """Whoever sets them and no provider believes that something is limited."""
    with pytest.raises(SettingError, match=told):
        check(Settings.from_environment(settings))
