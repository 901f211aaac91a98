"""service.slots: what was written is read back, where it was written, and nothing else is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.slots import CHUNK, Layout, check_of

CLASSES = st.integers(1, 50)


@given(CLASSES, st.integers(0, 3 * CHUNK - 1), st.data())
def test_an_answer_is_read_where_it_was_written(classes: int, place: int, data: st.DataObject) -> None:
    """With all its members, by its place or by its key; what lies beside it is not touched."""
    layout = Layout(classes)
    key, tag = data.draw(st.binary(min_size=16, max_size=16).filter(lambda key: any(key[:8]))), b"8 bytes."
    logits = data.draw(st.binary(min_size=4 * classes, max_size=4 * classes))
    members = data.draw(st.binary(min_size=classes, max_size=classes))
    slot = layout.written_slot.pack(key, 77, tag, np.float32(0.5).tobytes(), classes - 1, logits, members, True)
    ring = bytearray(3 * layout.chunk_bytes)
    chunk, within = divmod(place, CHUNK)
    at = chunk * layout.chunk_bytes + CHUNK * 8 + within * layout.slot_bytes
    ring[at : at + layout.slot_bytes] = slot + check_of(slot)
    start = chunk * layout.chunk_bytes + within * 8
    ring[start : start + 8] = key[:8]

    def read(offset: int, size: int) -> bytes:
        return bytes(ring[offset : offset + size])

    expected = (key, 77, tag, 0.5, classes - 1, logits, members, True)
    assert layout.read_slot(read, place) == expected
    beside = [each for each in (place - 1, place + 1) if 0 <= each < 3 * CHUNK]
    assert [layout.read_slot(read, each) for each in beside] == [None] * len(beside)
    sought = np.frombuffer(key[:8], np.uint64)
    assert list(layout.find(read, len(ring), sought)) == [expected]
    # Of a file that ends within a chunk, the whole ones are looked through.
    assert list(layout.find(read, chunk * layout.chunk_bytes + 5, sought)) == []


@given(CLASSES)
def test_slots_are_small_and_lie_straight(classes: int) -> None:
    """At multiples of 8 bytes, with no more than 7 in vain."""
    layout = Layout(classes)
    assert layout.slot_bytes % 8 == layout.chunk_bytes % 8 == 0
    assert 0 <= layout.slot_bytes - (16 + 8 + 8 + 4 + 4 + 4 * classes + classes + 1 + 4) < 8
