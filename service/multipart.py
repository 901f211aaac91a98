"""multipart/form-data (RFC 7578) → the files in it, in order, as they arrive.

Written for many small files in one body, where it takes 1 µs a file; a parser that looks at every byte takes a hundred.
"""

import re
from collections.abc import Sequence

from python_multipart.multipart import parse_options_header

from service.errors import BadParameter, BodyTooLarge, MalformedRequest

FIELD = "file"
HEADER_BYTES = 8192
# RFC 2046, section 5.1.1.
BOUNDARY_BYTES = 70
# The headers that nearly every client writes for a file, without their values; others take the long way.
PLAIN = re.compile(
    rb'content-disposition: form-data; name="([^"\\\r\n]*)"(?:; filename="[^"\\\r\n]*")?(?:\r\ncontent-type:[^\r\n]*)?',
    re.IGNORECASE,
)
# From the line end of a delimiter to a file's contents, as nearly every client writes it.
PLAIN_FILE = re.compile(
    rb'\r\n(?i:content-disposition: form-data; name=)"file"(?i:; filename=)"[^"\\\r\n]*"'
    rb"(?:\r\n(?i:content-type:)[^\r\n]*)?\r\n\r\n"
)
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)


def files(body: bytes, content_type: bytes, max_files: int) -> list[bytes]:
    """The contents of the parts named `file` of a whole body. Raises what Form raises."""
    form = Form(content_type, max_files)
    form.feed(body)
    return form.close()


class Form:
    """A form as it arrives: feed it, take what has come whole, close it.

    Raises MalformedRequest (400), BodyTooLarge (413, too many files) or BadParameter (422, none or another name).
    """

    def __init__(self, content_type: bytes, max_files: int) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise MalformedRequest("The Content-Type of multipart/form-data names no boundary.")
        if len(boundary) > BOUNDARY_BYTES:
            raise MalformedRequest(f"The boundary is longer than {BOUNDARY_BYTES} characters.")
        self.files: list[bytes] = []
        self._delimiter = b"\r\n--" + boundary
        self._max_files = max_files
        # The first delimiter may open the body, without a line end before it.
        self._buffer = bytearray(b"\r\n")
        self._at = 0
        self._searched = 0
        self._in_part = False
        self._ended = False

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The next piece of the body; returns the files that it completes."""
        known = len(self.files)
        if not (known or self._in_part) and len(self._buffer) == 2:
            plain = self._plain_files(data)
            if plain:
                self.files, self._ended = plain, True
        # What follows the closing boundary is to be ignored.
        if not self._ended:
            self._buffer += data
            while self._next_part():
                pass
            # All but the line end before the next part.
            done = max(0, self._at - 2)
            del self._buffer[:done]
            self._at -= done
            self._searched = max(0, self._searched - done)
        return self.files[known:]

    def _plain_files(self, data: bytes) -> list[bytes] | None:
        """All files of a body that came whole and holds nothing unusual; None for any other."""
        opening = self._delimiter[2:]
        if not data.startswith(opening):
            return None
        *parts, end = data[len(opening) :].split(self._delimiter, self._max_files)
        if end not in (b"--\r\n", b"--"):
            return None
        files = []
        for part in parts:
            head = PLAIN_FILE.match(part)
            if head is None or head.end() > HEADER_BYTES:
                return None
            files.append(part[head.end() :])
        return files

    def close(self) -> list[bytes]:
        """The body ends here."""
        if not self._ended:
            raise MalformedRequest("The multipart body is truncated: it has no closing boundary.")
        if not self.files:
            raise BadParameter(f"The form holds no part named {FIELD!r}.")
        return self.files

    def _next_part(self) -> bool:
        """Go on to the next delimiter; False if it has not arrived."""
        found = self._buffer.find(self._delimiter, max(self._at, self._searched))
        if found < 0:
            self._searched = max(self._at, len(self._buffer) - len(self._delimiter))
            self._check_unfinished()
            return False
        line_end = self._delimiter_end(found + len(self._delimiter))
        if line_end is None:
            self._searched = found
            return False
        if self._in_part:
            self._take(found)
        # A part may be empty but for its line end, which then is also the next delimiter's.
        self._at = self._searched = line_end
        self._in_part = True
        return not self._ended

    def _delimiter_end(self, at: int) -> int | None:
        """Behind a delimiter's line; None if that has not arrived."""
        tail = bytes(self._buffer[at : at + 2])
        if tail == b"\r\n":
            return at + 2
        if tail == b"--":
            self._ended = True
            return at + 2
        if len(tail) < 2:
            return None
        # Transport padding.
        end = self._buffer.find(b"\r\n", at)
        if end < 0 and len(self._buffer) - at <= HEADER_BYTES:
            return None
        if end < 0 or self._buffer[at:end].strip(b" \t"):
            raise MalformedRequest("The multipart body is malformed: a boundary is followed by something else.")
        return end + 2

    def _take(self, end: int) -> None:
        """The part from here to `end` is whole."""
        head_end = self._head_end(end)
        if head_end < 0:
            raise MalformedRequest("The multipart body is malformed: a part's headers do not end.")
        name = _name(bytes(self._buffer[self._at : head_end]))
        if name != FIELD:
            raise BadParameter(f"The form has a part named {name!r}; every part must be an image named {FIELD!r}.")
        if len(self.files) == self._max_files:
            raise BodyTooLarge(f"The form holds more than the {self._max_files} files accepted in one request.")
        with memoryview(self._buffer) as view:
            self.files.append(bytes(view[head_end + 4 : end]))

    def _head_end(self, end: int) -> int:
        """Where the headers of this part end; -1 if they do not. Without headers, at the line end before the part."""
        head_end = self._buffer.find(b"\r\n\r\n", self._at - 2, end)
        if head_end - self._at > HEADER_BYTES:
            raise MalformedRequest("The multipart body is malformed: a part's headers are too long.")
        return head_end

    def _check_unfinished(self) -> None:
        """Refuse what will not become a part, rather than wait for its end."""
        if self._in_part and len(self._buffer) - self._at > HEADER_BYTES and self._head_end(len(self._buffer)) < 0:
            raise MalformedRequest("The multipart body is malformed: a part's headers are too long.")


def _name(head: bytes) -> str:
    """The field's name by a part's headers."""
    plain = PLAIN.fullmatch(head)
    if plain:
        return plain[1].decode("utf-8", "replace")
    disposition = b""
    for line in head.split(b"\r\n") if head else ():
        header = HEADER.fullmatch(line)
        if header is None:
            raise MalformedRequest("The multipart body is malformed: a part has a header that is none.")
        if header[1].lower() == b"content-disposition":
            disposition = header[2]
    return parse_options_header(disposition)[1].get(b"name", b"").decode("utf-8", "replace")
