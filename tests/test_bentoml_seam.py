"""What the seam relies on in BentoML; these fail when a new BentoML builds or starts its application otherwise."""

import asyncio
from typing import Any

import bentoml
import pytest
import uvicorn
from _bentoml_sdk import Service

from service.bentoml_seam import BENTOML_PATHS, Asgi, fronted_service


class Recorder:
    """A front that hands everything on and keeps what it was given."""

    def __init__(self) -> None:
        self.application: Asgi | None = None
        self.instances: list[Any] = []
        self.ended = False

    def before(self, bentoml: Asgi) -> Asgi:
        self.application = bentoml
        return bentoml

    def started(self, instance: Any) -> None:
        self.instances.append(instance)

    def stopped(self) -> None:
        self.ended = True


class Echo:
    """The smallest service."""

    @bentoml.api  # type: ignore[untyped-decorator]
    def echo(self, text: str) -> str:
        """Return what was given."""
        return text


@pytest.fixture(autouse=True)
def uvicorn_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam puts our server in place of uvicorn's for the process."""
    monkeypatch.setattr(uvicorn, "Server", uvicorn.Server)


def test_what_bentoml_serves_is_what_the_front_returns_and_its_start_is_told() -> None:
    """to_asgi gives the front's application; starting it makes one instance and tells the front."""
    front = Recorder()

    def serve(config: uvicorn.Config) -> uvicorn.Server:
        raise AssertionError("not served here")

    service = fronted_service(front, Echo, serve=serve, name="echo", config={"workers": 1})
    assert isinstance(service, Service)
    application = service.to_asgi()
    assert front.application is not None
    assert application is front.application
    assert uvicorn.Server is serve  # tests/test_service.py tells that the worker then makes its server of it
    asyncio.run(_start_and_stop(application))
    assert [type(instance) for instance in front.instances] == [Echo]
    assert front.ended


async def _start_and_stop(application: Asgi) -> None:
    sent: list[str] = []
    orders = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(orders)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await application({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_bentomls_paths_hold_no_route_of_ours() -> None:
    """What is handed on never shadows the contract, nor is its index page, which reports its visitors, among it."""
    assert not any(path.startswith(("/v1", "/livez", "/readyz", "/docs.json")) for path in BENTOML_PATHS)
    assert "/" not in BENTOML_PATHS
