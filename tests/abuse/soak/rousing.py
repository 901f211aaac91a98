"""Runs every thread that a service starts when it is first needed, so that later ones are one too many."""

import asyncio
from io import BytesIO

from PIL import Image

from tests.abuse.soak.questions import MODELS, classify, head
from tests.abuse.wire import Address, Wire, connect

# More than any pool of the service has threads, and pictures that are decoded in each kind of pool.
AT_ONCE, ROUNDS = 32, 3
LARGE, HUGE = 500, 4500


class Asleep(Exception):
    """The service does not answer what rouses it."""


async def rouse(address: Address) -> None:
    """Raises Asleep."""
    wires: set[Wire] = set()
    clients = [await connect(address, wires) for _ in range(AT_ONCE)]
    images = [(_picture(LARGE), AT_ONCE), (_picture(HUGE), 4)]
    posts = [
        (head(classify(model), [b"Content-Type: image/png"], body) + body, number)
        for body, number in images
        for model in MODELS
    ]
    for data, number in [(b"GET /metrics HTTP/1.1\r\nHost: soak\r\n\r\n", AT_ONCE)] * ROUNDS + posts:
        answers = await asyncio.gather(*(wire.ask(data) for wire in clients[:number]))
        if any(answer.status != 200 for answer in answers):
            raise Asleep(f"answered {[answer.status for answer in answers]} to {data[:100]!r}")
    for wire in clients:
        wire.close()


def _picture(side: int) -> bytes:
    file = BytesIO()
    tile = Image.effect_noise((500, 500), 50)
    picture = Image.new("L", (side, side))
    for left in range(0, side, 500):
        picture.paste(tile, (left, left))
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
