"""Tokens of an identity provider: JWTs (RFC 7519) signed by a key of its JWKS (RFC 7517), as OpenID Connect has it.

The keys are fetched when the first token comes, in a thread, and again now and then; at once for a token of a key that
is not known, but not more often than REFETCH_S, whatever tokens come. Where they cannot be fetched the last ones stay.
A token is verified once for all requests until then: it takes 0.1 to 0.3 ms, in which nobody else is answered.
"""

import asyncio
import hashlib
import http.client
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from service.errors import NotReady, SettingError
from service.grant import Grant, invalid_token
from service.subjects import SubjectMeter, Subjects

# By the first two letters of an algorithm, the kind of key it takes. Only what is signed with a private key: `none` and
# HMAC, by which whoever knows a public key could sign, are no algorithms here.
KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
SHORTEST_RSA_BITS = 2048
# For clocks that differ.
LEEWAY_S = 30
# Between two fetches, and the age at which keys are fetched anew.
REFETCH_S, STALE_S = 10.0, 300.0
FETCH_TIMEOUT_S, LARGEST_BYTES = 5.0, 1024 * 1024
# Tokens that are not verified again until the keys are fetched anew.
MOST_KNOWN = 1024
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

logger = logging.getLogger("trueodds")


@dataclass(frozen=True)
class Provider:
    """Its name as tokens have it, the name they have for this service, and where its keys are: https: or file:."""

    issuer: str
    audience: str
    jwks_url: str

    def check(self) -> None:
        """Raises SettingError for a place that keys cannot be believed to come from."""
        parts = urlsplit(self.jwks_url)
        near = parts.scheme == "http" and parts.hostname in LOOPBACK
        if not (near or (parts.scheme == "https" and parts.hostname) or (parts.scheme == "file" and not parts.netloc)):
            raise SettingError(
                f"TRUEODDS_OIDC_JWKS_URL={self.jwks_url} is neither https: nor file:; http: only on this machine."
            )

    def fetch(self) -> dict[str, Any]:
        """Its JWKS. Raises OSError, HTTPException or ValueError. No redirect is followed."""
        parts = urlsplit(self.jwks_url)
        if parts.scheme == "file":
            content = Path(unquote(parts.path)).read_bytes()
        else:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(parts.hostname or "", parts.port, timeout=FETCH_TIMEOUT_S)
            try:
                connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
                response = connection.getresponse()
                if response.status != 200:
                    raise ValueError(f"it is answered {response.status}")
                content = response.read(LARGEST_BYTES + 1)
            finally:
                connection.close()
        document = json.loads(content) if len(content) <= LARGEST_BYTES else None
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError("it is no JWKS")
        return document


@dataclass(frozen=True)
class VerificationKey:
    """Of a JWKS. Without an algorithm of its own it takes all of its kind."""

    kind: str
    algorithm: str | None
    public: Any

    def takes(self, algorithm: str) -> bool:
        return self.kind == KINDS[algorithm[:2]] and self.algorithm in (None, algorithm)


class ProviderTokens:
    """Tells what a token allows."""

    def __init__(
        self, provider: Provider, subjects: Subjects | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`subjects` knows their limits, if they have any. Raises SettingError where PyJWT is not there."""
        try:
            import cryptography  # noqa: F401
            import jwt
        except ImportError as error:
            raise SettingError(
                "TRUEODDS_OIDC_ISSUER needs packages more: pip install --require-hashes -r requirements/oidc.lock."
            ) from error
        provider.check()
        self._jwt = jwt
        self._provider = provider
        self._subjects = subjects
        self._clock = clock
        # By key id; None before they were fetched.
        self._keys: dict[str | None, VerificationKey] | None = None
        self._tried_at = self._fetched_at = -float("inf")
        self._fetching: asyncio.Task[None] | None = None
        # By the SHA-256 of the token.
        self._known: dict[bytes, Grant] = {}

    async def grant(self, token: bytes) -> Grant:
        """Raises Unauthorised, or NotReady where the provider's keys are not known."""
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known and time.time() < known.expires:
            self._fetch_if_stale()
            return known
        grant = await self._verified(token)
        if len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        # By the keys as they are now: nothing is waited for after one was found.
        self._known[digest] = grant
        return grant

    async def _verified(self, token: bytes) -> Grant:
        """Raises Unauthorised, NotReady."""
        try:
            header = self._jwt.get_unverified_header(token)
        except (self._jwt.PyJWTError, ValueError, RecursionError):
            raise invalid_token("The token is no JWT.") from None
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise invalid_token("The token is signed by an algorithm that is not accepted.")
        key = await self._key(header.get("kid"))
        if not key.takes(algorithm):
            raise invalid_token("The token's algorithm is not that of its key.")
        try:
            claims = self._jwt.decode(
                token,
                key.public,
                algorithms=[algorithm],
                issuer=self._provider.issuer,
                audience=self._provider.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except self._jwt.PyJWTError as error:
            raise invalid_token(f"The token does not hold ({type(error).__name__}).") from None
        return Grant(_scopes(claims), expires=float(claims["exp"]) + LEEWAY_S, meter=self._meter(claims))

    def _meter(self, claims: dict[str, Any]) -> SubjectMeter | None:
        """Raises Unauthorised."""
        if self._subjects is None:
            return None
        if not claims.get("sub"):
            raise invalid_token("The token names no subject (sub), to whom its limits would belong.")
        return self._subjects.of(claims["sub"])

    async def _key(self, kid: Any) -> VerificationKey:
        """Raises Unauthorised, NotReady."""
        kid = kid if isinstance(kid, str) else None
        if self._keys is None or kid not in self._keys:
            # Whoever waits and goes takes nobody else's answer away.
            if self._may_fetch():
                await asyncio.shield(self._fetch())
        else:
            self._fetch_if_stale()
        if self._keys is None:
            raise NotReady("The identity provider's keys could not be fetched; retry soon.")
        if kid not in self._keys:
            raise invalid_token("The token is signed by a key that the identity provider does not list.")
        return self._keys[kid]

    def _fetch_if_stale(self) -> None:
        """While the last ones are used."""
        if self._clock() - self._fetched_at > STALE_S and self._may_fetch():
            self._fetch()

    def _may_fetch(self) -> bool:
        return self._fetching is not None or self._clock() - self._tried_at > REFETCH_S

    def _fetch(self) -> "asyncio.Task[None]":
        """One at a time."""
        if self._fetching is None:
            self._tried_at = self._clock()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch_now())
        return self._fetching

    async def _fetch_now(self) -> None:
        try:
            document = await asyncio.get_running_loop().run_in_executor(None, self._provider.fetch)
            self._keys = self._usable(document["keys"])
            self._known.clear()
            self._fetched_at = self._clock()
        except (OSError, http.client.HTTPException, ValueError) as error:
            logger.warning("the keys at %s cannot be fetched: %s", self._provider.jwks_url, error)
        finally:
            self._fetching = None

    def _usable(self, listed: list[Any]) -> dict[str | None, VerificationKey]:
        """By key id those that can verify a signature; a lone one also verifies for tokens that name none."""
        keys: dict[str | None, VerificationKey] = {}
        for each in listed:
            if not isinstance(each, dict) or each.get("kty") not in KINDS.values() or each.get("use", "sig") != "sig":
                continue
            try:
                key = self._jwt.PyJWK(each)
            except self._jwt.PyJWTError:
                continue
            if key.key_type != "RSA" or key.key.key_size >= SHORTEST_RSA_BITS:
                keys[key.key_id] = VerificationKey(each["kty"], each.get("alg"), key.key)
        if len(keys) == 1:
            keys[None] = next(iter(keys.values()))
        return keys


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """Of `scope` (RFC 8693) or `scp`, as some providers call it: words in a string, or a list of them."""
    found: set[str] = set()
    for name in ("scope", "scp"):
        told = claims.get(name, ())
        found.update(told.split() if isinstance(told, str) else told if isinstance(told, list) else ())
    return frozenset(filter(lambda scope: isinstance(scope, str), found))
