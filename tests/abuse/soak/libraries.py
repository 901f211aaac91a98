"""Learns from a service that has nothing else to do what the right answers are."""

from typing import Any

import orjson

from tests.abuse.soak.questions import (
    MODELS,
    Item,
    Library,
    Truth,
    classify,
    head,
    npy,
    tell_apart,
    tensor_rows,
    variants,
)
from tests.abuse.wire import Address, Wire, connect


class Unteachable(Exception):
    """The service does not answer what it should be able to."""


async def learn(address: Address) -> list[Library]:
    """Raises Unteachable."""
    wires: set[Wire] = set()
    wire = await connect(address, wires)
    found = [await _library(wire, model) for model in MODELS]
    wire.close()
    return found


async def _library(wire: Wire, model: str) -> Library:
    items = []
    for body, content_type in variants(model):
        items.append(Item(body, content_type, Truth.of(await _asked(wire, model, content_type, body))))
    rows = tensor_rows(model)
    results = (await _asked(wire, model, b"application/x-npy", npy(rows)))["results"]
    return Library(model, tell_apart(items), rows, [Truth.of(result) for result in results])


async def _asked(wire: Wire, model: str, content_type: bytes, body: bytes) -> dict[str, Any]:
    answer = await wire.ask(head(classify(model), [b"Content-Type: " + content_type], body) + body)
    if answer.status != 200:
        raise Unteachable(f"{model} answered {answer.status}: {answer.body[:300]!r}")
    result: dict[str, Any] = orjson.loads(answer.body)
    return result
