"""Files read once, from a folder opened once: what is checked is what is used, whatever happens to their names later.
And files written whole or not at all.

A link would lead elsewhere, a hard link is a name for a file that somebody else may hold, and what others may write
may change while it is read. Each is refused.
"""

import errno
import hashlib
import os
import stat
import tempfile
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

RESTORE = "restore the bundle or export it again"
# Without O_NONBLOCK, opening a pipe would wait for its writer.
FOR_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UnsafeFileError(OSError):
    """A file or folder that is not read, for it may not be what it seems; tells why and the remedy, not its name."""


class Folder:
    """An open folder. `own`: it and its files must be this user's, as what is kept for later starts is.

    Raises FileNotFoundError, UnsafeFileError or another OSError, as its methods do.
    """

    def __init__(self, path: Path, *, own: bool = False) -> None:
        self.path = path
        self._own = own
        try:
            self._descriptor = os.open(path, FOR_READING | os.O_DIRECTORY)
        except OSError as error:
            # A link is no directory: the system says which of the two only when asked for one alone.
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafeFileError(f"is no folder, or a symbolic link; {RESTORE}") from error
            raise
        try:
            self._check(os.fstat(self._descriptor))
        except OSError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """Of all that lies in it."""
        return sorted(os.listdir(self._descriptor))  # noqa: PTH208  a path could mean another folder by now

    def open(self, name: str) -> FileIO:
        """A regular file that has this one name and that nobody else may write."""
        try:
            descriptor = os.open(name, FOR_READING, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnsafeFileError("is a symbolic link; put the file itself in its place") from error
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UnsafeFileError(f"is no regular file; {RESTORE}")
            if found.st_nlink > 1:
                raise UnsafeFileError("has a second name (a hard link); put a copy in its place")
            self._check(found)
        except OSError:
            os.close(descriptor)
            raise
        return FileIO(descriptor)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def digest(self, name: str) -> str:
        """SHA-256, in hexadecimal; the content is not kept."""
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _check(self, found: os.stat_result) -> None:
        if self._own and found.st_uid != os.geteuid():
            raise UnsafeFileError("belongs to another user")
        # By convention a group with its user's number is that user's alone; its members may write where umask is 002.
        shared = found.st_mode & stat.S_IWGRP and found.st_gid != found.st_uid
        if shared or found.st_mode & stat.S_IWOTH:
            raise UnsafeFileError("may be written by others; forbid it with chmod go-w, or put a copy elsewhere")


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """In the place of what was there, on the disk when this returns; else that stays as it was. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
