"""service.cache: what was answered once is answered again, within its bytes, and never for another image or model."""

import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.answers import Answers, Options, Row
from service.bundle import load
from service.cache import OVERHEAD_BYTES, AnswerCache, key_of, size_of
from tests.test_answers import LABELS, outputs
from tests.test_bundle import write_bundle

SHA = "a" * 64


def row(number: float = 0, classes: int = 2) -> Row:
    return Row(np.arange(classes), np.full(2 + 3 * classes, number, np.float32), bytes(classes), False, False)


SIZE = size_of(row())


def number_of(found: Row | None) -> float | None:
    return None if found is None else float(found.numbers[0])


def test_an_answer_comes_back_under_its_key_only() -> None:
    """And each look is counted."""
    cache = AnswerCache(10 * SIZE)
    cache.put(b"a", row(1))
    assert number_of(cache.get(b"a")) == 1
    assert cache.get(b"b") is None
    assert (cache.hits, cache.misses, cache.evictions, cache.bytes, len(cache)) == (1, 1, 0, SIZE, 1)


def test_a_kept_row_answers_with_new_options_and_id(tmp_path: Path) -> None:
    """Byte for byte what a fresh one would, though options and id are no part of the key."""
    answers = Answers(load(write_bundle(tmp_path, labels=LABELS)))
    fresh = answers.rows(outputs())[1]
    cache = AnswerCache(10_000)
    cache.put(b"a", fresh)
    kept = cache.get(b"a")
    assert kept is not None
    assert kept.numbers.base is None
    for options in (Options(), Options(1), Options(None, logits=True)):
        assert answers.encode(kept, options, "id-2") == answers.encode(fresh, options, "id-2")


def test_the_longest_unused_goes_first() -> None:
    """A look is a use."""
    cache = AnswerCache(2 * SIZE)
    cache.put(b"a", row(1))
    cache.put(b"b", row(2))
    cache.get(b"a")
    cache.put(b"c", row(3))
    assert [number_of(cache.get(key)) for key in (b"a", b"b", b"c")] == [1, None, 3]
    assert cache.evictions == 1


@pytest.mark.parametrize("max_bytes", [0, 1, SIZE - 1])
def test_what_is_larger_than_all_is_not_kept(max_bytes: int) -> None:
    """It does not drive out the others either; 0 keeps nothing."""
    cache = AnswerCache(max_bytes)
    cache.put(b"a", row())
    assert (cache.get(b"a"), cache.bytes, cache.evictions) == (None, 0, 0)
    cache = AnswerCache(SIZE + 10)
    cache.put(b"a", row())
    cache.put(b"b", row(classes=1000))
    assert cache.get(b"a") is not None


KEYS = st.integers(0, 6).map(lambda number: bytes([number]))
STEPS = st.one_of(
    st.tuples(st.just("get"), KEYS, st.just(0)), st.tuples(st.just("put"), KEYS, st.sampled_from([1, 2, 40, 400]))
)


@pytest.mark.slow
@given(st.integers(0, 6 * SIZE), st.lists(STEPS, max_size=60))
@settings(deadline=None, max_examples=300)
def test_it_is_what_a_simple_model_is(max_bytes: int, steps: list[tuple[str, bytes, int]]) -> None:
    """Always within its bytes, always the least recently used gone, every count right."""
    cache = AnswerCache(max_bytes)
    model: OrderedDict[bytes, Row] = OrderedDict()
    hits = misses = evictions = 0
    for number, (step, key, classes) in enumerate(steps):
        if step == "get":
            assert number_of(cache.get(key)) == number_of(model.get(key))
            hits, misses = hits + (key in model), misses + (key not in model)
            if key in model:
                model.move_to_end(key)
        else:
            new = row(number, classes)
            cache.put(key, new)
            if size_of(new) <= max_bytes:
                model[key] = new
                model.move_to_end(key)
                while sum(map(size_of, model.values())) > max_bytes:
                    model.popitem(last=False)
                    evictions += 1
        assert cache.bytes == sum(map(size_of, model.values())) <= max_bytes
        assert (len(cache), cache.hits, cache.misses, cache.evictions) == (len(model), hits, misses, evictions)


@pytest.mark.parametrize(("classes", "n"), [(2, 500), (2, 1400), (2, 6000), (10, 2000), (1000, 500)])
def test_its_bytes_are_those_of_the_memory_it_takes(classes: int, n: int) -> None:
    """By tracemalloc: never much less than it says, never more."""
    cache = AnswerCache(10**9)
    batch = np.zeros((64, 1 + 3 * classes), np.float32)
    before = 0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(n):
            # As in a batch: views, and bytes of their own.
            members = bytes(bytearray(classes))
            cache.put(i.to_bytes(32, "little"), Row(np.arange(classes), batch[i % 64], members, False, False))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.75 * cache.bytes < taken <= cache.bytes
    assert cache.bytes >= n * OVERHEAD_BYTES


def test_keys_tell_images_and_models_apart() -> None:
    """One pixel or another graph is another key; how the pixels lie in memory is not."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    other = pixels.copy()
    other[3, 5, 2] ^= 1
    keys = {key_of(pixels, SHA), key_of(other, SHA), key_of(pixels, "b" * 64)}
    assert len(keys) == 3
    assert key_of(np.asfortranarray(pixels), SHA) == key_of(pixels.copy(), SHA) == key_of(pixels, SHA)
    stacked = np.stack([other, pixels])
    assert key_of(stacked[1], SHA) == key_of(pixels, SHA)
