"""The one place that reaches into BentoML: a service of its whose application stands behind one of ours.

BentoML has no public way to answer a request before its middleware. In a worker of its own, `Service.to_asgi` makes the
application that is served, by a `uvicorn.Server` made next; a worker of ours (service.launch) asks for BentoML's
application when the first client of BentoML's comes. Tests fail when a new BentoML does either otherwise.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from _bentoml_sdk import Service
from bentoml._internal.context import server_context

from service.protocol import Application


class Worker(Protocol):
    """What serves in a worker process, whoever started that."""

    def before(self, make: Callable[[], Application]) -> Application:
        """The application to serve, which hands on what is BentoML's to the one of `make`, made when needed."""
        ...

    def server(self, config: uvicorn.Config) -> uvicorn.Server:
        """The server to serve it by."""
        ...


class FrontedService(Service[Any]):  # type: ignore[misc]
    """BentoML's service over a class, whose application is served behind a worker's."""

    _worker: Worker

    def to_asgi(self, is_main: bool = True) -> Application:
        """What BentoML's own worker serves."""
        # It makes its server from this name next.
        uvicorn.Server = self._worker.server  # type: ignore[misc, assignment]
        make = super().to_asgi
        return self._worker.before(lambda: make(is_main=is_main))

    def behind(self, number: int) -> Application:
        """BentoML's application in worker `number` of ours, which BentoML has told nothing yet."""
        server_context.worker_index = number
        server_context.service_type = "entry_service"
        server_context.service_name = server_context.bento_name = self.name
        server_context.bento_version = "not available"
        server_context.service_routes = [api.route for api in self.apis.values()]
        application: Application = super().to_asgi(is_main=True)
        return application


def fronted_service(worker: Worker, inner: type[Any], name: str, config: dict[str, Any]) -> FrontedService:
    """A BentoML service over `inner` that is served behind `worker`."""
    service = FrontedService(name=name, inner=inner, config=config)
    service._worker = worker
    return service


def worker_number() -> int:
    """Counted from 1 among the workers of an instance that BentoML started; 0 elsewhere."""
    return server_context.worker_index or 0


def metrics_folder() -> Path | None:
    """Where BentoML's workers keep their metrics, and nobody else: it empties the folder at each start."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder and worker_number() else None
