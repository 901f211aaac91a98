"""From files to result objects: each is decoded alone, and only sound ones reach the batcher."""

import asyncio
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL.ImageFile import ImageFile

from service import images
from service.answers import Answers, Options
from service.errors import Problem
from service.images import InputSpec, Pixels
from service.registry import Registry, ServedModel

# A file of up to so many bytes and pixels is decoded on the event loop: a hop to a thread would cost more.
BYTES_DECODED_ON_LOOP, PIXELS_DECODED_ON_LOOP = 64 * 1024, 128 * 128

Result = dict[str, Any]


class Classifier:
    """Classifies with the models of a registry."""

    def __init__(self, registry: Registry, max_pixels: int, decoding_threads: int) -> None:
        self.registry = registry
        self._max_pixels = max_pixels
        self._answers = {name: Answers(model.bundle) for name, model in registry.models.items()}
        # Pillow warns of odd metadata, which are of no use here, once for each file.
        warnings.filterwarnings("ignore", module="PIL")
        self._decoders = ThreadPoolExecutor(decoding_threads, thread_name_prefix="decode")

    async def classify_file(self, model: ServedModel, file: bytes, options: Options, request_id: str) -> Result:
        """One file → its result object. Raises Problem."""
        pixels = await self._pixels(file, model.bundle.manifest.input)
        return (await self.classify_pixels(model, pixels[None], options, request_id))[0]

    async def classify_files(
        self, model: ServedModel, files: Sequence[bytes], options: Options, request_id: str
    ) -> list[Result]:
        """Several files → a result object each, in order, or `{"error": problem}` where a file is at fault."""
        spec = model.bundle.manifest.input
        decoded = [await self._pixels_or_problem(file, spec) for file in files]
        sound = [item for item in decoded if not isinstance(item, Problem)]
        answered = iter(await self.classify_pixels(model, np.stack(sound), options, request_id) if sound else ())
        return [
            {"error": item.document(request_id)} if isinstance(item, Problem) else next(answered) for item in decoded
        ]

    async def classify_pixels(
        self, model: ServedModel, pixels: Pixels, options: Options, request_id: str
    ) -> list[Result]:
        """(N, H, W, 3) uint8 of the network's own shape → N result objects. Raises Overloaded."""
        return self._answers[model.name].results(await model.classify(pixels), options, request_id)

    def close(self) -> None:
        self._decoders.shutdown()
        self.registry.close()

    async def _pixels(self, file: bytes, spec: InputSpec) -> Pixels:
        loop = asyncio.get_running_loop()
        if len(file) > BYTES_DECODED_ON_LOOP:
            # Even a header may take long: it can be made of millions of segments.
            return await loop.run_in_executor(self._decoders, self._decoded, file, spec)
        image = images.read_header(file, self._max_pixels)
        if image.width * image.height > PIXELS_DECODED_ON_LOOP:
            return await loop.run_in_executor(self._decoders, _pixels_of, image, spec)
        return _pixels_of(image, spec)

    def _decoded(self, file: bytes, spec: InputSpec) -> Pixels:
        return _pixels_of(images.read_header(file, self._max_pixels), spec)

    async def _pixels_or_problem(self, file: bytes, spec: InputSpec) -> Pixels | Problem:
        try:
            return await self._pixels(file, spec)
        except Problem as problem:
            return problem


def _pixels_of(image: ImageFile, spec: InputSpec) -> Pixels:
    return images.to_pixels(images.decode(image), spec)
