"""Which images are for what: split by their content, each class by itself."""

import hashlib
from collections.abc import Sequence

import numpy as np

from models.datasets import Indices, Labels
from models.task import Split

# Of all images, and how many are enough: what calibrates and tests teaches nothing.
SHARES: dict[Split, tuple[float, int]] = {"fit": (0.15, 1000), "conformal": (0.15, 1000), "test": (0.2, 2000)}


def partition(classes: Labels, digests: Sequence[str]) -> dict[Split, Indices]:
    """Four disjoint splits that together are all images; of each class some, and the same share, are in each.

    classes (N,), digests: of each image's content, all different. Only what is alike could fall into two splits,
    so the same images are always split alike, whatever their names and order. Every class has 10 images or more.
    """
    parts: dict[Split, list[int]] = {"train": [], **{split: [] for split in SHARES}}
    shares = {split: min(share, enough / len(classes)) for split, (share, enough) in SHARES.items()}
    for label in np.unique(classes):
        members = sorted(np.flatnonzero(classes == label).tolist(), key=lambda i: _place(digests[i]))
        begin = 0
        for split, share in shares.items():
            end = begin + max(1, round(share * len(members)))
            parts[split] += members[begin:end]
            begin = end
        parts["train"] += members[begin:]
    return {split: np.sort(np.array(members, np.int64)) for split, members in parts.items()}


def _place(digest: str) -> bytes:
    # Not the digest itself: whoever made the images may have chosen by it.
    return hashlib.sha256(digest.encode()).digest()


def digest_of(digests: Sequence[str], indices: Indices) -> str:
    """SHA-256 that names these images by their content."""
    return hashlib.sha256("".join(sorted(digests[i] for i in indices)).encode()).hexdigest()
