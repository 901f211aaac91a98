"""multipart/form-data (RFC 7578) → the files in it, in order."""

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadParameter, BodyTooLarge, MalformedRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
HEADER_BYTES = 8192


def files(body: bytes, content_type: bytes, max_files: int) -> list[bytes]:
    """The contents of the parts named `file`.

    Raises MalformedRequest (400), BodyTooLarge (413, too many files) or BadParameter (422, none or another name).
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type of multipart/form-data names no boundary.")
    form = _Form(max_files)
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_size=HEADER_BYTES)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest(f"The multipart body is malformed: {error}.") from error
    if not form.ended:
        raise MalformedRequest("The multipart body is truncated: it has no closing boundary.")
    if not form.files:
        raise BadParameter(f"The form holds no part named {FIELD!r}.")
    return form.files


class _Form:
    """Collects parts as the parser meets them."""

    def __init__(self, max_files: int) -> None:
        self.files: list[bytes] = []
        self.ended = False
        self._max_files = max_files
        self._content = bytearray()
        self._disposition = b""
        self._header = b""
        self._value = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._content = bytearray()
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _part_end(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise BadParameter(f"The form has a part named {name!r}; every part must be an image named {FIELD!r}.")
        if len(self.files) == self._max_files:
            raise BodyTooLarge(f"The form holds more than the {self._max_files} files accepted in one request.")
        self.files.append(bytes(self._content))

    def _end(self) -> None:
        self.ended = True
