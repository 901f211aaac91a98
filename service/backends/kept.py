"""Folders of a cache: each made whole or not at all, and used only where it is undamaged and its owner's alone."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from service.files import Folder, UnsafeFileError

logger = logging.getLogger("trueodds")

Content = TypeVar("Content")


class DamagedError(Exception):
    """What lies in the cache is not what was written there, or not safe to use."""


def key_of(*parts: str) -> str:
    """A folder's name for all that its content depends on."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def kept(folder: Path, read: Callable[[Path], Content], write: Callable[[Path], None]) -> Content:
    """What `read` finds in `folder`; where there is nothing or it is damaged, `write` makes it first.

    `read` raises FileNotFoundError where there is nothing and DamagedError where it cannot be used. Raises OSError,
    DamagedError, or what `write` raises.
    """
    try:
        return read(folder)
    except FileNotFoundError:
        pass
    except DamagedError as error:
        logger.warning("%s is made again: %s", folder, error)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        write(made)
        _replace(folder, made, read)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return read(folder)


@contextmanager
def kept_or_made(
    cache: Path | None, name: str, what: str, read: Callable[[Path], Content], write: Callable[[Path], None]
) -> Iterator[tuple[Path, Content]]:
    """A folder `name` of the cache and what `kept` gives for it.

    Without a cache, or where that cannot be written, which the log tells of `what`, it is a temporary folder that goes
    when the context ends. Raises OSError where there is no room even for that, DamagedError, or what `write` raises.
    """
    if cache is not None:
        try:
            content = kept(cache / name, read, write)
        except (OSError, DamagedError) as error:
            logger.warning("no %s are kept in %s: %s", what, cache, error)
        else:
            yield cache / name, content
            return
    with tempfile.TemporaryDirectory(prefix="trueodds-") as made:
        write(Path(made))
        yield Path(made), read(Path(made))


def opened(folder: Path) -> Folder:
    """Raises FileNotFoundError where there is nothing, DamagedError where it is not this user's alone."""
    try:
        return Folder(folder, own=True)
    except UnsafeFileError as error:
        raise DamagedError(f"it {error}") from error


def make_private(folder: Path) -> None:
    """For this user alone, whatever the umask: only then are the files in it trusted."""
    folder.chmod(0o700)
    for path in folder.iterdir():
        path.chmod(0o600)


def _replace(folder: Path, made: Path, read: Callable[[Path], object]) -> None:
    try:
        made.rename(folder)
    except OSError:
        # Another process was faster, or what is there is damaged.
        try:
            read(folder)
        except (DamagedError, FileNotFoundError):
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
