"""models.partition: images are split by what they show."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.partition import SHARES, digest_of, partition

SIZES = st.lists(st.integers(10, 120), min_size=2, max_size=6)


def made(sizes: list[int]) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[str]]:
    classes = np.repeat(np.arange(len(sizes)), sizes)
    return classes, [hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(classes))]


@given(SIZES)
def test_each_image_is_in_one_split_and_each_class_in_every_split(sizes: list[int]) -> None:
    """Of a class the share that is meant, to within one image."""
    classes, digests = made(sizes)
    parts = partition(classes, digests)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(classes)))
    for label, size in enumerate(sizes):
        for split, (share, _) in SHARES.items():
            count = int((classes[parts[split]] == label).sum())
            assert count >= 1
            assert abs(count - share * size) <= 1
        assert (classes[parts["train"]] == label).sum() >= size / 3


@given(SIZES, st.randoms(use_true_random=False))
def test_the_same_images_are_split_alike_in_any_order(sizes: list[int], random: object) -> None:
    """And the digest of a split, which goes by content, is the same."""
    classes, digests = made(sizes)
    order = np.random.default_rng(sum(sizes)).permutation(len(classes))
    shuffled = [digests[i] for i in order]
    one, other = partition(classes, digests), partition(classes[order], shuffled)
    for split, indices in one.items():
        assert {digests[i] for i in indices} == {shuffled[i] for i in other[split]}
        assert digest_of(digests, indices) == digest_of(shuffled, other[split])
    assert len({digest_of(digests, indices) for indices in one.values()}) == 4


def test_of_many_images_no_more_are_held_back_than_it_takes() -> None:
    """A thousand to fit, a thousand for thresholds, two thousand to test; the rest teaches."""
    classes, digests = made([2500] * 10)
    sizes = {split: len(indices) for split, indices in partition(classes, digests).items()}
    assert sizes == {"train": 21_000, "fit": 1000, "conformal": 1000, "test": 2000}
