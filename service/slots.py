"""How answers lie in a ring of service.memory: in chunks, each the first 8 bytes of all keys and then the answers.

What is looked for is compared with the keys, which lie together; an answer is read only where its key is that.
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

CHUNK = 1024
# Of a key what is looked through, and of an answer the CRC-32 at its end.
KEY_BYTES, CHECK_BYTES = 8, 4

Keys = npt.NDArray[np.uint64]
# (offset, size) → so many bytes of a ring.
Read = Callable[[int, int], bytes]


class Slot(NamedTuple):
    """An answer as it is kept."""

    key: bytes
    stamp: int
    tag: bytes
    confidence: float
    predicted: int
    logits: bytes
    members: bytes
    is_ood: bool


class Layout:
    """Where things are in a ring of answers among so many classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        slot = f"<16sq8s%sI{4 * classes}s{classes}s?"
        padding = -(struct.calcsize(slot % "f") + CHECK_BYTES) % 8
        # As Slot has it; the confidence is written as the four bytes that it is already.
        self.slot, self.written_slot = (struct.Struct(f"{slot % kind}{padding}x") for kind in ("f", "4s"))
        self.slot_bytes = self.slot.size + CHECK_BYTES
        self.chunk_bytes = CHUNK * (KEY_BYTES + self.slot_bytes)

    def read_slot(self, read: Read, place: int) -> Slot | None:
        """None where nothing was written, or not wholly."""
        chunk, within = divmod(place, CHUNK)
        kept = read(chunk * self.chunk_bytes + CHUNK * KEY_BYTES + within * self.slot_bytes, self.slot_bytes)
        slot = kept[: self.slot.size]
        if check_of(slot) != kept[self.slot.size :] or not any(slot):
            return None
        return Slot(*self.slot.unpack(slot))

    def find(self, read: Read, size: int, sought: Keys) -> Iterator[Slot]:
        """Those of a ring of so many bytes whose keys begin as one that is sought; `sought` is sorted."""
        chunks = size // self.chunk_bytes
        parts = [read(chunk * self.chunk_bytes, CHUNK * KEY_BYTES) for chunk in range(chunks)]
        keys = np.frombuffer(b"".join(parts), np.uint64)
        for place in np.flatnonzero(np.isin(keys, sought)).tolist():
            if slot := self.read_slot(read, place):
                yield slot

    def newest(self, buffer: mmap.mmap, places: int) -> tuple[int, int]:
        """The time of the last answer in a ring, and its place; (0, -1) where there is none."""
        chunk = np.dtype([("keys", f"V{CHUNK * KEY_BYTES}"), ("slots", f"V{self.slot_bytes}", CHUNK)])
        slots = np.frombuffer(buffer, chunk)["slots"].reshape(-1)[:places]
        stamps = slots.view(f"V16,<i8,V{self.slot_bytes - 24}")["f1"].copy()
        for place in stamps.argsort()[::-1].tolist():
            # One that was not wholly written tells no time.
            if slot := self.read_slot(lambda offset, size: buffer[offset : offset + size], place):
                return slot.stamp, place
        return 0, -1


def check_of(slot: bytes) -> bytes:
    return crc32(slot).to_bytes(CHECK_BYTES, "little")
