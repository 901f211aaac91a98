"""From files to answers: each is decoded alone, and only sound ones reach the batcher."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from service import images
from service.answers import Row
from service.batching import Priority
from service.board import Board
from service.cache import AnswerCache, key_of
from service.errors import Problem
from service.images import InputSpec, Pixels
from service.pulse import Pulse
from service.registry import Registry, ServedModel

# A file of up to so many bytes and pixels is decoded on the event loop: a hop to a thread would cost more.
BYTES_DECODED_ON_LOOP, PIXELS_DECODED_ON_LOOP = 64 * 1024, 128 * 128
# Files of one request are decoded so many at a time, so that others get a word in and inference begins meanwhile.
FILES_AT_A_TIME = 32

P = ParamSpec("P")
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
    ) -> None:
        """`count_cached` learns, by a model's name, how many answers the cache had and had not."""
        self.registry = registry
        self._max_pixels = max_pixels
        self._cache = cache
        self._count_cached = count_cached
        self._pulse = pulse or Pulse(Board())
        # Pillow warns of odd metadata, which are of no use here, once for each file.
        warnings.filterwarnings("ignore", module="PIL")
        self._decoders = ThreadPoolExecutor(decoding_threads, thread_name_prefix="decode")

    def pixels_at_once(self, file: bytes, spec: InputSpec) -> Pixels | None:
        """One file → what the network is fed; None if that would hold up the event loop. Raises Problem."""
        if len(file) > BYTES_DECODED_ON_LOOP:
            # Even a header may take long: it can be made of millions of segments.
            return None
        image = images.read_header(file, self._max_pixels)
        if image.width * image.height > PIXELS_DECODED_ON_LOOP:
            return None
        return _pixels_of(image, spec)

    async def classify_file(self, model: ServedModel, file: bytes) -> Row:
        """One file → its answer. Raises Problem."""
        pixels = await self._pixels(file, model.bundle.manifest.input)
        return (await self.classify_pixels(model, pixels[None]))[0]

    async def classify_files(self, model: ServedModel, files: Sequence[bytes]) -> list[Outcome]:
        """Several files → an answer each, in order, or the problem of a file that is at fault. Raises Overloaded."""
        running: list[asyncio.Task[list[Outcome]]] = []
        try:
            async for decoded in self._decoded_files(files, model.bundle.manifest.input):
                running.append(asyncio.ensure_future(self._outcomes(model, decoded)))  # noqa: PERF401
            return [outcome for task in running for outcome in await task]
        finally:
            for task in running:
                task.cancel()

    @property
    def remembers(self) -> bool:
        """Whether an image seen before may be answered without a batch."""
        return self._cache.max_bytes > 0

    async def classify_pixels(self, model: ServedModel, pixels: Pixels) -> list[Row]:
        """(N, H, W, 3) uint8 of the network's own shape → N answers. Raises Overloaded."""
        if self.remembers:
            return await self._classify_unknown(model, pixels)
        return _rows(await model.classify(pixels, _priority(pixels)))

    async def _classify_unknown(self, model: ServedModel, pixels: Pixels) -> list[Row]:
        """Only what the cache has no answer for."""
        keys = [key_of(image, model.bundle.sha256) for image in pixels]
        known = [self._cache.get(key) for key in keys]
        unknown = [i for i, row in enumerate(known) if row is None]
        self._count_cached(model.name, len(keys) - len(unknown), len(unknown))
        if unknown:
            answers = await model.classify(pixels[unknown], _priority(pixels))
            for i, row in zip(unknown, _rows(answers), strict=True):
                known[i] = row
                self._cache.put(keys[i], row)
        return [row for row in known if row is not None]

    def close(self) -> None:
        self._decoders.shutdown()
        self.registry.close()

    async def _outcomes(self, model: ServedModel, decoded: list[Pixels | Problem]) -> list[Outcome]:
        sound = [item for item in decoded if not isinstance(item, Problem)]
        rows = iter(await self.classify_pixels(model, np.stack(sound)) if sound else ())
        return [item if isinstance(item, Problem) else next(rows) for item in decoded]

    async def _decoded_files(self, files: Sequence[bytes], spec: InputSpec) -> AsyncIterator[list[Pixels | Problem]]:
        for start in range(0, len(files), FILES_AT_A_TIME):
            some = files[start : start + FILES_AT_A_TIME]
            tried = [_or_problem(self.pixels_at_once, file, spec) for file in some]
            yield [
                await self._in_thread(_or_problem, self._decoded, file, spec) if pixels is None else pixels
                for file, pixels in zip(some, tried, strict=True)
            ]
            await asyncio.sleep(0)

    async def _pixels(self, file: bytes, spec: InputSpec) -> Pixels:
        pixels = self.pixels_at_once(file, spec)
        return await self._in_thread(self._decoded, file, spec) if pixels is None else pixels

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, partial(call, *args, **kwargs))

    def _decoded(self, file: bytes, spec: InputSpec) -> Pixels:
        """In a thread."""
        with self._pulse.watching("decoding an image"):
            return _pixels_of(images.read_header(file, self._max_pixels), spec)


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
