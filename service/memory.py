"""What was answered of late, so that a label for it may come later: to any worker of the instance.

Each worker keeps the last answers of each model in a file of its own, a ring, in the folder that all workers share; it
is found there by them all, and by the worker that takes its place. What is written for an image has a checksum, so that
whoever reads it while it is written, or after the writer was killed, notices. A file grows while there is room for it;
where there is none, fewer answers are remembered, and nothing else suffers.

    <model>-<classes>-<worker>.answers   chunks: the first 8 bytes of each key, then the answers
    <tag>.origin                         JSON: the model and calibration that answers of this tag are of

An answer is told by its tag to be of a calibration, so one of before a reload is never taken for one of after it.
"""

import json
import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from service.answers import Row
from service.bundle import Bundle
from service.errors import Problem
from service.files import write_whole
from service.mapped import mapped
from service.slots import CHUNK, KEY_BYTES, Layout, Read, Slot, check_of

logger = logging.getLogger("trueodds")

# Of one model in one worker: where an answer of very many classes is large, fewer are remembered.
MOST_BYTES = 64 * 1024 * 1024
# Where there was no room, it is looked for again so much later.
RETRY_NS = 1_000_000_000
ORIGIN = ".origin"
FILE = re.compile(r"(?P<model>.+)-(?P<classes>\d+)-(?P<number>\d+)\.answers")


@dataclass(frozen=True)
class Origin:
    """Whose answers: a model under a calibration."""

    model: str
    version: str
    sha256: str
    calibration: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> "Origin | None":
        """None of one that promises nothing."""
        manifest, calibration = bundle.manifest, bundle.calibration
        if calibration is None:
            return None
        return cls(manifest.name, manifest.version, bundle.sha256, calibration.id, tuple(manifest.labels))

    @property
    def document(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def tag(self) -> bytes:
        return sha256(self.document).digest()[:8]

    @property
    def file_name(self) -> str:
        return self.tag.hex() + ORIGIN


@dataclass(frozen=True)
class Remembered:
    """One image's answer, given so many ns after 1970 began.

    confidence: the calibrated probability of the predicted class. logits (C,) float32, little-endian. members (C,): 1
    for a class in the prediction set, else 0.
    """

    origin: Origin
    answered_ns: int
    confidence: float
    predicted: int
    logits: bytes
    members: bytes
    is_ood: bool


class Memory:
    """Keeps the last answers of one model in this worker: `capacity` of them, where there is room.

    Written by one thread, the event loop's. Without a folder it is this process's own.
    """

    def __init__(
        self,
        origin: Origin,
        capacity: int,
        folder: Path | None = None,
        number: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`number` is the worker's. Raises OSError where there is no room to tell whose the answers are."""
        self.origin = origin
        self.layout = layout = Layout(len(origin.labels))
        self.capacity = min(capacity, MOST_BYTES // layout.slot_bytes)
        # Memory that nothing was written to yet costs nothing.
        whole = 0 if folder else -(-self.capacity // CHUNK) * layout.chunk_bytes
        self.buffer: bytearray | mmap.mmap = bytearray(whole)
        self._tag = origin.tag
        self._now_ns = now_ns
        self._pack = layout.written_slot.pack
        self._slot_bytes, self._chunk_bytes = layout.slot_bytes, layout.chunk_bytes
        # In the bytes of a row's numbers.
        self._logits_at, self._logits_end = 4 + 8 * layout.classes, 4 + 12 * layout.classes
        self._path = folder and folder / f"{origin.model}-{layout.classes}-{number}.answers"
        # The next answer's place; places there are; when the last answer was given.
        self._position = self._places = self._stamp = 0
        self._grow_at_ns = 0
        if folder:
            write_whole(folder / origin.file_name, origin.document, 0o600)
        if self._path and self._path.exists():
            self._go_on(self._path)

    def remember(self, outcomes: Sequence[Row | Problem], request_id: str) -> None:
        """A request is answered so. What was answered under its id before is found no longer."""
        for index, row in enumerate(outcomes):
            if not isinstance(row, Problem):
                self._write(digest(request_id, index), row)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.buffer[offset : offset + size])

    def _write(self, key: bytes, row: Row) -> None:
        stamp = self._now_ns()
        if stamp <= self._stamp:
            # No two are of one time, whatever the clock does: the newest counts.
            stamp = self._stamp + 1
        self._stamp = stamp
        if self._position >= self._places and not self._begin_anew(stamp):
            return
        chunk, place = divmod(self._position, CHUNK)
        self._position += 1
        numbers = row.numbers.tobytes()
        slot = self._pack(
            key,
            stamp,
            self._tag,
            numbers[4:8],
            row.order[0],
            numbers[self._logits_at : self._logits_end],
            row.members,
            row.is_ood,
        )
        buffer, size, start = self.buffer, self._slot_bytes, chunk * self._chunk_bytes
        at = start + CHUNK * KEY_BYTES + place * size
        buffer[at : at + size] = slot + check_of(slot)
        at = start + place * KEY_BYTES
        buffer[at : at + KEY_BYTES] = key[:KEY_BYTES]

    def _begin_anew(self, now: int) -> bool:
        """At the end of what there is: go on in a further chunk, or where there is to be none, over the oldest."""
        if self._places < self.capacity and now >= self._grow_at_ns:
            try:
                self._grow()
            except (OSError, ValueError) as error:
                self._grow_at_ns = now + RETRY_NS
                if not self._places:
                    logger.warning("answers of %s are not remembered: %s", self.origin.model, error)
        if self._position >= self._places:
            self._position = 0
        return self._places > 0

    def _grow(self) -> None:
        chunks = self._places // CHUNK + 1
        if self._path:
            self.buffer = mapped(self._path, chunks * self._chunk_bytes)
        self._places = min(chunks * CHUNK, self.capacity)

    def _go_on(self, path: Path) -> None:
        """After the last answer of the worker that had this number before."""
        chunks = min(path.stat().st_size // self._chunk_bytes, -(-self.capacity // CHUNK))
        if not chunks:
            return
        self.buffer = mapped(path, chunks * self._chunk_bytes)
        self._places = min(chunks * CHUNK, self.capacity)
        self._stamp, last = self.layout.newest(self.buffer, self._places)
        self._position = last + 1


class Memories:
    """Of all models and workers of an instance: in their folder, or without one of this process."""

    def __init__(self, capacity: int, folder: Path | None = None, number: int = 0) -> None:
        self.capacity = capacity
        self._folder = folder
        self._number = number
        self._own: list[Memory] = []
        self._origins: dict[bytes, Origin | None] = {}

    def of(self, bundle: Bundle) -> Memory | None:
        """Of a model in this worker; None where nothing is to be remembered, or there is no room at all."""
        origin = Origin.of(bundle)
        if origin is None or not self.capacity:
            return None
        try:
            memory = Memory(origin, self.capacity, self._folder, self._number)
        except OSError as error:
            logger.warning("answers of %s are not remembered: %s", origin.model, error)
            return None
        self._own.append(memory)
        return memory

    def find(self, wanted: Sequence[tuple[str, int]]) -> list[Remembered | None]:
        """By request ids and indices; None for what is not remembered. The newest of the same, of whichever model.

        In any thread. Takes about a millisecond for each worker's model, however many are wanted.
        """
        digests = [digest(*each) for each in wanted]
        newest: dict[bytes, Slot] = {}
        sought = np.unique(np.frombuffer(b"".join(each[:KEY_BYTES] for each in digests), np.uint64))
        for layout, size, read in self._rings():
            for slot in layout.find(read, size, sought):
                if slot.key not in newest or newest[slot.key].stamp < slot.stamp:
                    newest[slot.key] = slot
        return [self._remembered(newest[each]) if each in newest else None for each in digests]

    def _rings(self) -> Iterator[tuple[Layout, int, Read]]:
        if self._folder is None:
            for memory in self._own:
                yield memory.layout, len(memory.buffer), memory.read
            return
        for path in self._folder.glob("*.answers"):
            named = FILE.fullmatch(path.name)
            # It may have been removed with the folder, by a supervisor that ends.
            with suppress(OSError), path.open("rb", buffering=0) as file:
                if named:
                    size = os.fstat(file.fileno()).st_size
                    yield Layout(int(named["classes"])), size, partial(_pread, file.fileno())

    def _remembered(self, slot: Slot) -> Remembered | None:
        origin = self._origin(slot.tag)
        if origin is None:
            return None
        return Remembered(origin, slot.stamp, slot.confidence, slot.predicted, slot.logits, slot.members, slot.is_ood)

    def _origin(self, tag: bytes) -> Origin | None:
        if self._folder is None:
            return next((memory.origin for memory in self._own if memory.origin.tag == tag), None)
        if tag not in self._origins:
            try:
                told = json.loads((self._folder / f"{tag.hex()}{ORIGIN}").read_bytes())
            except (OSError, ValueError):
                return None
            self._origins[tag] = Origin(**{**told, "labels": tuple(told["labels"])})
        return self._origins[tag]


def digest(request_id: str, index: int) -> bytes:
    """Of an image's answer: 16 bytes that nobody makes two ids for."""
    # No id has a space in it.
    return sha256(f"{request_id} {index}".encode()).digest()[:16]


def _pread(file: int, offset: int, size: int) -> bytes:
    return os.pread(file, size, offset)
