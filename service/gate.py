"""Who may: stands before everything else, lets in those who show a key or token that allows what they ask for.

Health is open to everybody, and so are metrics and documents unless a setting says otherwise. All else needs a scope;
a path nobody has thought of needs the greatest. Whoever is refused is refused by the head of the request alone.

A request that takes the direct way (service.direct) is let in by what its head showed before, as long as the keys are
the same and the token holds; its quota is taken as any other's.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from service.errors import Forbidden, Problem, SettingError, Unauthorised, UnknownPath
from service.grant import Grant, invalid_token
from service.keys import KeyRing
from service.protocol import REMEMBER, RESPOND, Application, Direct, DirectExchange, Message, Receive, Scope, Send
from service.quota import Meter, Meters, Quota
from service.requests import Request
from service.responses import Respond, Response
from service.subjects import SubjectMeter, Subjects

if TYPE_CHECKING:
    from service.settings import Settings

HEALTH = frozenset({"/livez", "/healthz", "/readyz"})
DOCUMENTS = frozenset({"/", "/docs.json", "/schema.json"})
METRICS = "/metrics"
# Where those who run the service have a port of their own, this is there alone, and nothing else is there but health.
OPERATORS = DOCUMENTS | {METRICS}
INFER, FEEDBACK, ADMIN = "infer", "feedback", "admin"
MODELS, PIXELS = "/v1/models", "/classify_pixels"
BEARER = b"bearer "

# Learns of each refusal: request id, method, path, status, seconds.
Refused = Callable[[str, str, str, int, float], None]


class Tokens(Protocol):
    """Knows tokens of an identity provider."""

    async def grant(self, token: bytes) -> Grant:
        """Raises Unauthorised, or NotReady where the provider's keys are not known."""
        ...


class Gate:
    """Lets requests through to `inner`."""

    def __init__(
        self,
        keys: KeyRing | None,
        tokens: Tokens | None,
        meters: Meters,
        closed: dict[str, str],
        refused: Refused,
        only: frozenset[str] | None = None,
    ) -> None:
        """`closed` tells of paths that are open otherwise: the scope each needs, or that there is none of it ("").

        `only`: there is nothing but these paths and health.
        """
        self._inner: Application
        self._keys = keys
        self._tokens = tokens
        self._meters = meters
        self._closed = closed
        self._refused = refused
        self._only = only

    @classmethod
    def of(cls, settings: "Settings", folder: Path | None, number: int, refused: Refused) -> "Gate | None":
        """None where the settings ask for none. Raises SettingError."""
        closed = _closed(settings)
        tokens = _tokens(settings, folder, number)
        if settings.admin_port:
            closed = dict.fromkeys(OPERATORS, "")
        if not (settings.api_keys or tokens or closed):
            return None
        keys = KeyRing(settings.api_keys) if settings.api_keys else None
        return cls(keys, tokens, Meters(folder, number, settings.worker_count), closed, refused)

    def of_operators(self, settings: "Settings") -> "Gate":
        """Another, of the same keys and limits, for the port of those who run the service."""
        return Gate(self._keys, self._tokens, self._meters, _closed(settings), self._refused, OPERATORS)

    def before(self, inner: Application) -> Application:
        """Stand in front of an application; returns what is to be served."""
        self._inner = inner
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            grant = await self._grant(scope["path"], scope["headers"])
            lines = grant.meter.take() if grant and grant.meter else b""
        except Problem as problem:
            request = Request(scope, receive)
            response = Response.problem(problem, request.id)
            await response.send(send, request.respond, request.id)
            self._refused(request.id, request.method, request.path, response.status, time.perf_counter() - started)
            return
        if grant:
            await self._let_in(grant, lines, scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    def holds(self, grant: Grant) -> bool:
        """Whether it is still what its credential allows."""
        return (self._keys is None or self._keys.refresh() == grant.generation) and time.time() < grant.expires

    async def _let_in(self, grant: Grant, lines: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions", {})
        remember: Callable[[Direct], None] | None = extensions.get(REMEMBER)
        if remember:
            extensions[REMEMBER] = lambda direct: remember(DirectEntrance(self, grant, direct))
        if not grant.meter:
            await self._inner(scope, receive, send)
            return
        if RESPOND in extensions:
            extensions[RESPOND] = _responding(extensions[RESPOND], lines)
        try:
            await self._inner(scope, receive, _sending(send, lines))
        finally:
            grant.meter.leave()

    async def _grant(self, path: str, headers: list[tuple[bytes, bytes]]) -> Grant | None:
        """None for what is open. Raises Unauthorised, Forbidden, UnknownPath and what `Tokens.grant` raises."""
        scope = self._scope(path)
        if scope is None:
            return None
        grant = await self._known(headers)
        if scope not in grant.scopes:
            raise Forbidden(f"This needs the scope {scope!r}, which the credential has not; ask for one that has.")
        return grant

    def _scope(self, path: str) -> str | None:
        """Which scope a path needs; None for none. Raises UnknownPath for what is closed to everybody."""
        if path in HEALTH:
            return None
        needed = self._closed.get(path)
        if needed == "" or not (self._only is None or path in self._only):
            raise UnknownPath(f"There is nothing at {path}.")
        if needed:
            return needed
        if path in DOCUMENTS or path == METRICS or not (self._keys or self._tokens):
            return None
        if path.endswith("/feedback"):
            return FEEDBACK
        return INFER if path in (MODELS, PIXELS) or path.startswith(MODELS + "/") else ADMIN

    async def _known(self, headers: list[tuple[bytes, bytes]]) -> Grant:
        credential = _credential(headers)
        if credential is None:
            raise Unauthorised("Send a key or token as Authorization: Bearer, or a key as X-API-Key.")
        generation = self._keys.refresh() if self._keys else 0
        found = self._keys.find(credential) if self._keys else None
        if found:
            name, key = found
            return Grant(frozenset(key.scopes), generation=generation, meter=self._meters.of(name, key.quota))
        # A token has three parts, and a key has none.
        if self._tokens and credential.count(b".") == 2:
            return replace(await self._tokens.grant(credential), generation=generation)
        raise invalid_token("The key is not known, or no longer.")


class DirectEntrance:
    """What is remembered by a head that showed a credential: lets each request in anew, then answers it directly.

    One that is not let in takes the usual way, which tells why.
    """

    def __init__(self, gate: Gate, grant: Grant, direct: Direct) -> None:
        self._gate = gate
        self._grant = grant
        self._direct = direct

    def __call__(self, exchange: DirectExchange, body: bytes) -> bool:
        if not self._gate.holds(self._grant):
            return False
        meter = self._grant.meter
        if meter is None:
            return self._direct(exchange, body)
        try:
            lines = meter.take()
        except Problem:
            return False
        # It has all that an answer needs of an exchange.
        if self._direct(cast("DirectExchange", _Measured(exchange, meter, lines)), body):
            return True
        meter.take_back()
        return False


class _Measured:
    """An exchange that leaves its meter when it is answered or left."""

    __slots__ = ("_exchange", "_lines", "_meter", "left", "until")

    def __init__(self, exchange: DirectExchange, meter: Meter | SubjectMeter, lines: bytes) -> None:
        self._exchange = exchange
        self._meter = meter
        self._lines = lines
        self.left: Callable[[], None] | None = None
        self.until = exchange.until
        exchange.left = self._leave

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        self.left = None
        self._meter.leave()
        self._exchange.until = self.until
        self._exchange.answer(status, lines + self._lines, body)

    def _leave(self) -> None:
        self._meter.leave()
        left, self.left = self.left, None
        if left:
            left()


def _credential(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The key or token shown, if any. Raises Unauthorised for more than one: a proxy may have looked at the other."""
    shown = [(name, value) for name, value in headers if name in (b"authorization", b"x-api-key")]
    if not shown:
        return None
    if len(shown) > 1:
        raise invalid_token("There is more than one Authorization or X-API-Key; send one.")
    name, value = shown[0]
    if name == b"x-api-key":
        return value.strip()
    if value[: len(BEARER)].lower() != BEARER:
        raise invalid_token("Authorization is of another kind than Bearer.")
    return value[len(BEARER) :].strip()


def _responding(respond: Respond, lines: bytes) -> Respond:
    def measured(status: int, own: bytes, body: bytes) -> Awaitable[None]:
        return respond(status, own + lines, body)

    return measured


def _sending(send: Send, lines: bytes) -> Send:
    headers = [tuple(line.split(b": ", 1)) for line in lines.splitlines()]

    async def measured(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return measured


def _closed(settings: "Settings") -> dict[str, str]:
    """Of what is open by default. Raises SettingError where nobody could have the scope."""
    access = dict.fromkeys(DOCUMENTS, settings.docs_access) | {METRICS: settings.metrics_access}
    if ADMIN in access.values() and not (settings.api_keys or settings.oidc_issuer):
        raise SettingError(
            "TRUEODDS_METRICS_ACCESS or TRUEODDS_DOCS_ACCESS is admin, and nobody could be: set TRUEODDS_API_KEYS or "
            "TRUEODDS_OIDC_ISSUER too, or choose open or closed."
        )
    return {path: "" if who == "closed" else who for path, who in access.items() if who != "open"}


def _tokens(settings: "Settings", folder: Path | None, number: int) -> Tokens | None:
    given = (settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks_url)
    quota = _subjects_quota(settings)
    if not any((*given, quota != Quota())):
        return None
    if not all(given):
        raise SettingError("TRUEODDS_OIDC_ISSUER, _AUDIENCE and _JWKS_URL are set together, or nothing of OIDC is.")
    # Whoever asks for no tokens needs no package for them.
    from service.tokens import Provider, ProviderTokens

    subjects = Subjects(quota, folder, number, settings.worker_count) if quota != Quota() else None
    return ProviderTokens(Provider(*map(str, given)), subjects)


def _subjects_quota(settings: "Settings") -> Quota:
    """Raises SettingError."""
    rate, burst = settings.oidc_requests_per_second, settings.oidc_burst
    if burst and not rate:
        raise SettingError("TRUEODDS_OIDC_BURST means nothing without TRUEODDS_OIDC_REQUESTS_PER_SECOND.")
    return Quota.of(rate or None, burst, settings.oidc_concurrent)


def check(settings: "Settings") -> None:
    """Raises SettingError for what would keep the workers from starting."""
    Gate.of(settings, None, 0, lambda *_: None)
