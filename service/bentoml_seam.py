"""The one place that reaches into BentoML: a service whose ASGI application stands behind a callable of ours.

BentoML has no public way to answer a request before its middleware. `Service.to_asgi` makes the application a worker
serves; a test fails when a new BentoML builds it otherwise.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from _bentoml_sdk import Service

Asgi = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class FrontedService(Service[Any]):
    """A BentoML service; `put_in_front` is given BentoML's application and returns the one to serve.

    `on_start` is given the instance of `inner` a worker has just made.
    """

    put_in_front: Callable[[Asgi], Asgi]
    on_start: Callable[[Any], None]

    def to_asgi(self, is_main: bool = True) -> Asgi:
        return self.put_in_front(super().to_asgi(is_main=is_main))

    def __call__(self) -> Any:
        instance = super().__call__()
        self.on_start(instance)
        return instance
