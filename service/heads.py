"""Request heads that came before, and who answers what comes under them.

A client sends the same head again and again but for the length of its body. Such a head need not be parsed: it is
found by its bytes. Only heads that the parser has taken as they are get here, so that what is no HTTP is still the
parser's to refuse.
"""

import re
from typing import Generic, TypeVar

T = TypeVar("T")

# In bytes, and in heads: together they bound the memory, whatever clients send.
LONGEST_HEAD, MOST_HEADS = 2048, 512
# Bytes of a body, by the number of their digits.
LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?(\d{1,6})\r\n")
END = b"\r\n\r\n"


class Heads(Generic[T]):
    """What is remembered by a head; the oldest goes first."""

    def __init__(self) -> None:
        self._known: dict[bytes, T] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes) -> tuple[T, bytes] | None:
        """What is remembered by this request's head, and its body; None unless `data` is one whole request."""
        parts = _parts(data)
        if parts is None:
            return None
        known = self._known.get(parts[0])
        return None if known is None else (known, parts[1])

    def remember(self, data: bytes, what: T) -> None:
        """By the head of one whole request that a parser has taken; does nothing where it could not be found again."""
        parts = _parts(data)
        if parts is None:
            return
        if len(self._known) >= MOST_HEADS:
            del self._known[next(iter(self._known))]
        self._known[parts[0]] = what


def _parts(data: bytes) -> tuple[bytes, bytes] | None:
    """The head without the digits of its length, and the body, if that is all there is and all there should be.

    Two heads are the same without these digits only if they are the same otherwise: a head with two lengths, or with
    none, is one that the parser refuses or that has no body of known length, so it is never remembered.
    """
    length = LENGTH.search(data, 0, LONGEST_HEAD)
    if length is None:
        return None
    start, stop = length.span(1)
    # The length's own line end may be the first half of the head's.
    end = data.find(END, stop, LONGEST_HEAD) + 4
    if end < 4 or len(data) - end != int(length[1]):
        return None
    return data[:start] + data[stop:end], data[end:]
