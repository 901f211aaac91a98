"""Answers kept for images seen before, within a number of bytes; the longest unused goes first.

An image's answer is its own, whatever batch it came in, so what is kept is a row for each image. A request's options
and id come in when a row is encoded, so they are no part of the key. The model is, by the digest of its graph: another
version never answers from this one's rows. Used by one thread, the event loop's.
"""

import hashlib
import sys
from collections import OrderedDict

import numpy as np

from service.answers import Row
from service.images import Pixels

# What an entry takes beside its arrays' data: key, row, the heads of the arrays, the place in the ordered dictionary.
# By tracemalloc 444 to 517 (a dictionary grows in leaps) at 2,000 and 10,000 entries; CPython 3.11, numpy 2.4.
OVERHEAD_BYTES = 560


def key_of(pixels: Pixels, model_sha256: str) -> bytes:
    """(H, W, 3) uint8 as the network is fed → what tells this image and model from every other.

    SHA-256: whoever sends images chooses them, and must not be able to choose two of one key.
    """
    digest = hashlib.sha256(model_sha256.encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


class AnswerCache:
    """Rows by key. `bytes` never is more than `max_bytes`; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.hits = self.misses = self.evictions = 0
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Row | None:
        """The row put under this key, if it is still here; it becomes the latest used."""
        row = self._rows.get(key)
        if row is None:
            self.misses += 1
            return None
        self.hits += 1
        self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: Row) -> None:
        """Keep a row as the latest used, and let the longest unused go for it. One too large for all is not kept."""
        size = size_of(row)
        if size > self.max_bytes:
            return
        replaced = self._rows.pop(key, None)
        if replaced is not None:
            self.bytes -= size_of(replaced)
        while self.bytes + size > self.max_bytes:
            self.bytes -= size_of(self._rows.popitem(last=False)[1])
            self.evictions += 1
        self._rows[key] = row.alone()
        self.bytes += size


def size_of(row: Row) -> int:
    """Bytes of memory that keeping a row takes."""
    return OVERHEAD_BYTES + row.order.nbytes + row.numbers.nbytes + sys.getsizeof(row.members)
