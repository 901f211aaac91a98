"""service.tokens: what a provider signed for this service lets in, as far as it says and as long as it holds."""

import asyncio
import base64
import json
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
        self.tokens = ProviderTokens(Provider(ISSUER, AUDIENCE, identity.url), lambda: self.now)

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
