"""The one place that reaches into BentoML: a service whose ASGI application stands behind a callable of ours.

BentoML has no public way to answer a request before its middleware. `Service.to_asgi` makes the application a worker
serves and calling a service makes the worker's instance; a test fails when a new BentoML does either otherwise.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from _bentoml_sdk import Service

Asgi = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


# What BentoML answers: a closed set, for its metrics keep a row for every path ever asked for. Its index page is not
# among them, for it reports its visitors to a third party.
BENTOML_PATHS = frozenset({"/metrics", "/schema.json", "/healthz"})


class Front(Protocol):
    """What stands before BentoML's application."""

    def before(self, bentoml: Asgi) -> Asgi:
        """Take BentoML's application and return the one to serve."""
        ...

    def started(self, instance: Any) -> None:
        """Learn that a worker has made its instance of the service's class."""
        ...


def fronted_service(front: Front, inner: type[Any], name: str, config: dict[str, Any]) -> Service[Any]:
    """A BentoML service over `inner` that is served behind `front`."""

    class Fronted(Service[Any]):  # type: ignore[misc]
        def to_asgi(self, is_main: bool = True) -> Asgi:
            return front.before(super().to_asgi(is_main=is_main))

        def __call__(self) -> Any:
            instance = super().__call__()
            front.started(instance)
            return instance

    return Fronted(name=name, inner=inner, config=config)
