"""Download published files: resumed where they stopped, checked by their SHA-256, put in place only when whole."""

import hashlib
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

# How long a server may stay silent, in seconds.
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 16


class DownloadError(Exception):
    """A file that none of its URLs gave; names each of them and what went wrong there."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as published: its size in bytes, its SHA-256, and the URLs that serve it, the first one first."""

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]


def download(file: RemoteFile, directory: Path) -> Path:
    """Fetch a file into a directory; an earlier attempt's .partial file there is resumed. Raises DownloadError."""
    path = directory / file.name
    partial = directory / f"{file.name}.partial"
    failures = []
    for url in file.urls:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _fetch_checked(url, file, partial)
            partial.replace(path)
        except (OSError, HTTPException, DownloadError) as error:
            failures.append(f"{url}: {error}")
        else:
            return path
    raise DownloadError("; ".join(failures))


def sha256_of(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_checked(url: str, file: RemoteFile, partial: Path) -> None:
    resumed = partial.exists()
    _fetch(url, file, partial)
    found = sha256_of(partial)
    if found == file.sha256:
        return
    partial.unlink()
    if not resumed:
        raise DownloadError(f"the SHA-256 of what came is {found}, not {file.sha256}")
    # What an earlier attempt left may be at fault, so fetch all of it once.
    _fetch_checked(url, file, partial)


def _fetch(url: str, file: RemoteFile, partial: Path) -> None:
    """Fill the partial file up to its size. A connection that is cut is taken up again while that brings more."""
    while (start := _size(partial)) < file.size:
        try:
            _fetch_rest(url, file, partial, start)
        except (OSError, HTTPException):
            if _size(partial) <= start:
                raise


def _fetch_rest(url: str, file: RemoteFile, partial: Path, start: int) -> None:
    """One request for the bytes from start on. Raises OSError, HTTPException or DownloadError."""
    request = Request(url, headers={"Range": f"bytes={start}-"})  # noqa: S310  (URLs are constants of this package)
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310  (as above)  # nosec B310
        done = _first_byte(response, file, start)
        bar = tqdm(desc=file.name, total=file.size, initial=done, unit="B", unit_scale=True, disable=None)
        with partial.open("ab" if done else "wb") as out, bar:
            # Never more than the size: a server that goes on for ever cannot fill the disk.
            while chunk := response.read(min(CHUNK_BYTES, file.size - done)):
                out.write(chunk)
                done += len(chunk)
                bar.update(len(chunk))
    if done < file.size:
        raise ConnectionError(f"cut off after {done:,} of {file.size:,} bytes")


def _first_byte(response: HTTPResponse, file: RemoteFile, start: int) -> int:
    """Where in the file the response begins. Raises DownloadError if it is of a file of another size."""
    if response.status == 206:
        expected, found, first = f"bytes {start}-{file.size - 1}/{file.size}", response.headers["Content-Range"], start
    else:
        # A server that does not know Range sends the file from its beginning.
        expected, found, first = str(file.size), response.headers.get("Content-Length", str(file.size)), 0
    if found != expected:
        raise DownloadError(f"the server offers {found} where {expected} bytes were expected")
    return first


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
