"""Files replaced whole or not at all, whatever interrupts the writing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another path to write to: what lies there at the end takes the place of `path`, on the disk, or that stays as is.

    The folder is made. Two processes must not replace the same file: both would write to the one other path, which
    does not pile up when one is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    with partial.open("rb+") as written:
        os.fsync(written.fileno())
    partial.replace(path)
