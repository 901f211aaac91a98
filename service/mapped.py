"""A small file that the workers of an instance map, so that each sees what the others write."""

import mmap
import os
import sys
from pathlib import Path


def mapped(path: Path, size: int) -> mmap.mmap:
    """`size` bytes, zero unless written, of a file that is made where there is none. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "linux":
            # On a full disk this fails; without, whoever first wrote to a page would be killed.
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
        return mmap.mmap(file, size)
    finally:
        os.close(file)
