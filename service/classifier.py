"""From files to answers: each is decoded alone, and only sound ones reach the batcher."""

import asyncio
import math
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np

from service import images
from service.answers import Row
from service.batching import Priority
from service.board import Board
from service.cache import AnswerCache, key_of
from service.errors import Overloaded, Problem
from service.images import InputSpec, Pixels
from service.pulse import Pulse
from service.registry import Registry, ServedModel

# A file of up to so many bytes and pixels is decoded on the event loop: a hop to a thread would cost more.
BYTES_DECODED_ON_LOOP, PIXELS_DECODED_ON_LOOP = 64 * 1024, 128 * 128
# Pictures of more pixels are decoded one at a time: each may take some hundred MB for a moment.
PIXELS_OF_BIG = 4_000_000
# Files of one request are decoded so many at a time, so that others get a word in and inference begins meanwhile.
FILES_AT_A_TIME = 32

T = TypeVar("T")

# An image's answer, or what is wrong with it.
Outcome = Row | Problem


class Classifier:
    """Classifies with the models of a registry."""

    def __init__(
        self,
        registry: Registry,
        max_pixels: int,
        decoding_threads: int,
        cache: AnswerCache,
        count_cached: Callable[[str, int, int], None],
        pulse: Pulse | None = None,
        accepted: images.Accepted = images.USUAL,
    ) -> None:
        """`count_cached` learns, by a model's name, how many answers the cache had and had not."""
        self.registry = registry
        self._max_pixels = max_pixels
        self._accepted = accepted
        self._cache = cache
        self._count_cached = count_cached
        self._pulse = pulse or Pulse(Board())
        # Pillow warns of odd metadata, which are of no use here, once for each file.
        warnings.filterwarnings("ignore", module="PIL")
        self._decoders = ThreadPoolExecutor(decoding_threads, thread_name_prefix="decode")
        self._big_decoder = ThreadPoolExecutor(1, thread_name_prefix="decode-big")

    def pixels_at_once(self, file: bytes, spec: InputSpec) -> Pixels | None:
        """One file → what the network is fed; None if that would hold up the event loop. Raises Problem."""
        if len(file) > BYTES_DECODED_ON_LOOP:
            # Even a header may take long: it can be made of millions of segments.
            return None
        image = images.read_header(file, self._max_pixels, self._accepted)
        if image.width * image.height > PIXELS_DECODED_ON_LOOP:
            return None
        return _pixels_of(image, spec)

    async def classify_file(self, model: ServedModel, file: bytes, deadline: float = math.inf) -> Row:
        """One file → its answer. Raises Problem. `deadline` is on the clock of the model's batcher, as in all of these.

        It holds for the decoding as well, and so does the batcher's own.
        """
        pixels = self.pixels_at_once(file, model.bundle.manifest.input)
        if pixels is None:
            async with until(model, deadline, "decoded"):
                pixels = await self._pixels_in_thread(file, model.bundle.manifest.input)
        return (await self.classify_pixels(model, pixels[None], deadline))[0]

    async def classify_files(
        self, model: ServedModel, files: Sequence[bytes], deadline: float = math.inf
    ) -> list[Outcome]:
        """Several files → an answer each, in order, or the problem of a file that is at fault. Raises Overloaded.

        One deadline holds for all of them, however many batches they take.
        """
        running: list[asyncio.Task[list[Outcome]]] = []
        try:
            async with until(model, deadline, "decoded") as last:
                async for decoded in self._decoded_files(files, model.bundle.manifest.input):
                    running.append(asyncio.ensure_future(self._outcomes(model, decoded, last)))
                    _raise_failure(running)
            return [outcome for task in running for outcome in await task]
        finally:
            for task in running:
                # Of several failures one is told; the others are known, too.
                if not task.cancel() and not task.cancelled():
                    task.exception()

    async def decode(self, files: Sequence[bytes], spec: InputSpec) -> list[Pixels | Problem]:
        """Several files → what the network is fed, or the problem of a file that is at fault."""
        return [item async for some in self._decoded_files(files, spec) for item in some]

    @property
    def remembers(self) -> bool:
        """Whether an image seen before may be answered without a batch."""
        return self._cache.max_bytes > 0

    async def classify_pixels(self, model: ServedModel, pixels: Pixels, deadline: float = math.inf) -> list[Row]:
        """(N, H, W, 3) uint8 of the network's own shape → N answers. Raises Overloaded."""
        if self.remembers:
            return await self._classify_unknown(model, pixels, deadline)
        return _rows(await model.classify(pixels, _priority(pixels), deadline))

    async def _classify_unknown(self, model: ServedModel, pixels: Pixels, deadline: float) -> list[Row]:
        """Only what the cache has no answer for."""
        keys = [key_of(image, model.bundle.sha256) for image in pixels]
        known = [self._cache.get(key) for key in keys]
        unknown = [i for i, row in enumerate(known) if row is None]
        self._count_cached(model.name, len(keys) - len(unknown), len(unknown))
        if unknown:
            answers = await model.classify(pixels[unknown], _priority(pixels), deadline)
            for i, row in zip(unknown, _rows(answers), strict=True):
                known[i] = row
                self._cache.put(keys[i], row)
        return [row for row in known if row is not None]

    def close(self) -> None:
        self._decoders.shutdown()
        self._big_decoder.shutdown()
        self.registry.close()

    async def _outcomes(self, model: ServedModel, decoded: list[Pixels | Problem], deadline: float) -> list[Outcome]:
        sound = [item for item in decoded if not isinstance(item, Problem)]
        rows = iter(await self.classify_pixels(model, np.stack(sound), deadline) if sound else ())
        return [item if isinstance(item, Problem) else next(rows) for item in decoded]

    async def _decoded_files(self, files: Sequence[bytes], spec: InputSpec) -> AsyncIterator[list[Pixels | Problem]]:
        for start in range(0, len(files), FILES_AT_A_TIME):
            some = files[start : start + FILES_AT_A_TIME]
            tried = [_or_problem(self.pixels_at_once, file, spec) for file in some]
            yield [
                await self._pixels_or_problem(file, spec) if pixels is None else pixels
                for file, pixels in zip(some, tried, strict=True)
            ]
            await asyncio.sleep(0)

    async def _pixels_or_problem(self, file: bytes, spec: InputSpec) -> Pixels | Problem:
        try:
            return await self._pixels_in_thread(file, spec)
        except Problem as problem:
            return problem

    async def _pixels_in_thread(self, file: bytes, spec: InputSpec) -> Pixels:
        """Cancelled before its thread is free, it is not begun."""
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._decoders, self._decoded_unless_big, file, spec)
        if isinstance(decoded, images.Header):
            decoded = await loop.run_in_executor(self._big_decoder, self._decoded, decoded, spec)
        return decoded

    def _decoded_unless_big(self, file: bytes, spec: InputSpec) -> Pixels | images.Header:
        with self._pulse.watching("decoding an image"):
            image = images.read_header(file, self._max_pixels, self._accepted)
            return image if image.width * image.height > PIXELS_OF_BIG else _pixels_of(image, spec)

    def _decoded(self, image: images.Header, spec: InputSpec) -> Pixels:
        with self._pulse.watching("decoding a large image"):
            return _pixels_of(image, spec)


@asynccontextmanager
async def until(model: ServedModel, deadline: float, done: str) -> AsyncIterator[float]:
    """The deadline, no later than the batcher's own from now, by which something is `done` with images.

    Raises Overloaded when it passes within.
    """
    batcher = model.batcher
    deadline = min(deadline, batcher.after(batcher.limits.max_wait_s))
    try:
        async with asyncio.timeout(deadline - batcher.after(0)):
            yield deadline
    except TimeoutError:
        raise Overloaded(f"The images could not be {done} in time; retry later.") from None


def _raise_failure(tasks: Sequence[asyncio.Task[list[Outcome]]]) -> None:
    """Raises what made one of these fail, so that nothing more is decoded in vain."""
    for task in tasks:
        if task.done():
            task.result()


def _or_problem(decode: Callable[[bytes, InputSpec], T], file: bytes, spec: InputSpec) -> T | Problem:
    try:
        return decode(file, spec)
    except Problem as problem:
        return problem


def _priority(pixels: Pixels) -> Priority:
    """Of a request by its images, those that the cache knows included."""
    return Priority.BULK if len(pixels) > 1 else Priority.INTERACTIVE


def _rows(answers: Sequence[Row | Exception]) -> list[Row]:
    """Raises the first exception among them."""
    rows = []
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        rows.append(answer)
    return rows


def _pixels_of(image: images.Header, spec: InputSpec) -> Pixels:
    return images.to_pixels(images.decode(image), spec)
