"""Batches padded to powers of two: a GPU replays recorded work, which has fixed shapes and addresses."""

from collections.abc import Callable
from typing import Protocol

from service.backends import Outputs
from service.images import Pixels

# Recorded work is kept for each power of two up to here; a larger batch runs in parts.
LARGEST = 256


class Bucket(Protocol):
    """Recorded work for one shape. `pixels` (bucket, H, W, 3) uint8 is where the input goes; `run` answers for all of
    it, in arrays of its own.
    """

    pixels: Pixels

    def run(self) -> Outputs: ...


def bucket_size(images: int) -> int:
    """The smallest power of two that holds so many images, at least one."""
    return 1 << max(0, images - 1).bit_length()


class Buckets:
    """Recorded work by shape, each made by `record` when it is first needed: warm up what must not wait."""

    def __init__(self, record: Callable[[tuple[int, ...]], Bucket]) -> None:
        self._record = record
        self._recorded: dict[tuple[int, ...], Bucket] = {}

    def forward(self, pixels: Pixels) -> Outputs:
        """(N, H, W, 3) uint8 → the outputs for these N images."""
        if len(pixels) <= LARGEST:
            return self._forward(pixels)
        starts = range(0, len(pixels), LARGEST)
        return Outputs.concatenate([self._forward(pixels[start : start + LARGEST]) for start in starts])

    def _forward(self, pixels: Pixels) -> Outputs:
        shape = (bucket_size(len(pixels)), *pixels.shape[1:])
        bucket = self._recorded.get(shape)
        if bucket is None:
            bucket = self._recorded[shape] = self._record(shape)
        # What an earlier batch left behind them is computed too, and dropped: no image sees another.
        bucket.pixels[: len(pixels)] = pixels
        return bucket.run().split([len(pixels)])[0]
