"""What the seam relies on in BentoML; these fail when a new BentoML builds or starts its application otherwise.

That BentoML's application is served by a worker of ours too, and ours by BentoML's, is told by tests/test_service.py.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import bentoml
import httpx
import pytest
import uvicorn
from _bentoml_sdk import Service

from service.bentoml_seam import fronted_service
from service.late import Late
from service.protocol import Application
from tests.test_late import started


class Recorder:
    """A worker that puts nothing before BentoML's application."""

    def __init__(self) -> None:
        self.application: Application | None = None

    def before(self, make: Callable[[], Application]) -> Application:
        self.application = Late(make, start=lambda: None, stop=lambda: None)
        return self.application

    def server(self, config: uvicorn.Config) -> uvicorn.Server:
        raise AssertionError("not served here")


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


def routes(application: Any) -> list[str]:
    """Of the service, as BentoML's application lists them to its clients."""

    async def asked() -> list[str]:
        transport = httpx.ASGITransport(application)
        async with started(application), httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            schema = (await client.get("/schema.json")).raise_for_status().json()
        return [route["route"] for route in schema["routes"]]

    return asyncio.run(asyncio.wait_for(asked(), 30))


@pytest.mark.slow
def test_what_bentomls_worker_serves_is_what_ours_returns() -> None:
    """to_asgi gives the worker's application, with BentoML's behind it, and BentoML makes its server by the worker."""
    worker = Recorder()
    made = fronted_service(worker, Echo, name="echo", config={"workers": 1})
    assert isinstance(made, Service)
    application = made.to_asgi()
    assert application is worker.application
    assert uvicorn.Server == worker.server
    assert routes(application) == ["/echo"]
