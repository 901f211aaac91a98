"""Data sets: both forms on disk, downloads over a real socket, damage, and splits that never change."""

import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import datasets
from models.datasets import (
    DATASETS,
    Dataset,
    cache_directory,
    indices_digest,
    load,
    splits,
)
from models.downloads import DownloadError, RemoteFile, download
from models.formats import ARRAYS, Arrays, BatchUnpickler, DataError, Pixels

SPLITS = {
    "mnist": {
        "train": (50_000, "9ec507e8bf34d13072428c6cd5bf30efa929e53d73c681e5a58b940e4ee4e7f9"),
        "fit": (5_000, "7687b8723bc6e9f75551536e40c1c8ca8d9c04f185e8fbad056ff63f31f23db0"),
        "conformal": (5_000, "2cc9a80b6692167c2e134f326b7445065b9d96c4d58010fff55e6f129c9b854a"),
    },
    "mnist_3_7": {
        "train": (10_396, "b4db3bf4183133d35a7b711255c7140d8fd57dba3593c9a29240f99f3e2062fe"),
        "fit": (1_000, "df0ba047e429e83699a60a55d44098629d7b11738e65ccfdaad790af380dad7e"),
        "conformal": (1_000, "39d489dd8338b9e3a3c8e2e57ae34c2186454bec4bad50e8477517cf264148c4"),
    },
    "cifar10": {
        "train": (45_000, "24d2d6010f644003c8f2f8f16226fcba996ff7b8d176f3467ca22e332b0d87e7"),
        "fit": (2_500, "6593d9f07cb9a6e6809eae6a20efcbc8640734329892324963e0767c353ad582"),
        "conformal": (2_500, "91784e61d50efb5035cd2d443090dfcd679f2fd0960d2c95d7e584d64b7e336f"),
    },
}
# Kept before a test moves it.
SHARED = datasets.SHARED
CONTENT = np.random.default_rng(0).bytes(300_000)


# Splits.


@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_pinned(name: str) -> None:
    """The sizes and the indices of every split are those recorded here, for ever."""
    split = splits(name)
    found = {part: (len(indices), indices_digest(indices)) for part, indices in vars(split).items()}
    assert found == SPLITS[name]
    assert split.digests() == {part: digest for part, (_, digest) in SPLITS[name].items()}


@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_disjoint_and_complete(name: str) -> None:
    """Every training image is in exactly one split."""
    joined = np.concatenate(list(vars(splits(name)).values()))
    assert np.array_equal(np.sort(joined), np.arange(DATASETS[name].n_train))


# Two forms of the same data, tiny: 20 training images and 10 test images.


@dataclass(frozen=True)
class Tiny:
    """A data set cut down to a few images, put in place of the real one; its files in both forms."""

    name: str
    arrays: Arrays
    repacked: dict[str, bytes]
    canonical: dict[str, bytes]

    def write(self, files: dict[str, bytes], directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        return directory


@pytest.fixture(params=["mnist", "cifar10"])
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Each data set in turn, registered in its cut-down form. Its URLs lead nowhere."""
    made = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[request.param]()
    register(made, monkeypatch, "http://127.0.0.1:9")
    return made


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data is found by default, and no proxy stands between a test and its server."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets, "SHARED", tmp_path / "shared")


def register(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    source = replace(
        DATASETS[tiny.name],
        remotes=tuple(remote(name, content, f"{url}/{name}") for name, content in tiny.canonical.items()),
        digests={array: sha256(values.tobytes()) for array, values in tiny.arrays.items()},
        n_train=20,
        n_test=10,
    )
    monkeypatch.setitem(DATASETS, tiny.name, source)


def remote(name: str, content: bytes, *urls: str) -> RemoteFile:
    return RemoteFile(name, len(content), sha256(content), urls)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tiny_mnist() -> Tiny:
    arrays = random_arrays(28, 28)
    return Tiny("mnist", arrays, {"mnist.npz": npz(arrays)}, mnist_files(arrays))


def mnist_files(arrays: Arrays) -> dict[str, bytes]:
    """As published."""
    return {
        remote.name: idx_file(arrays[array]) for array, remote in zip(ARRAYS, DATASETS["mnist"].remotes, strict=True)
    }


def tiny_cifar10() -> Tiny:
    arrays = random_arrays(32, 32, 3)
    parts = zip(np.split(arrays["x_train"], 5), np.split(arrays["y_train"], 5), strict=True)
    batches = {f"data_batch_{k}": batch for k, batch in enumerate(parts, 1)}
    batches["test_batch"] = arrays["x_test"], arrays["y_test"]
    repacked = {f"cifar10_train_{k}.webp": sprite(batches[f"data_batch_{k}"][0], 2, 2) for k in range(1, 6)}
    repacked["cifar10_test.webp"] = sprite(arrays["x_test"], 2, 5)
    repacked["cifar10_labels.npz"] = npz({key: arrays[key] for key in ("y_train", "y_test")})
    # The published archive is not in the order of its batches either.
    members = {name: pickled_batch(*batches[name]) for name in sorted(batches, reverse=True)}
    return Tiny("cifar10", arrays, repacked, {"cifar-10-python.tar.gz": archive(members)})


def random_arrays(*shape: int) -> Arrays:
    rng = np.random.default_rng(1)
    sizes = {"x_train": (20, *shape), "y_train": (20,), "x_test": (10, *shape), "y_test": (10,)}
    return {name: rng.integers(0, 256 if name[0] == "x" else 10, size, np.uint8) for name, size in sizes.items()}


def idx_file(values: Pixels) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes())


def npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def sprite(images: Pixels, rows: int, columns: int) -> bytes:
    tiles = images.reshape(rows, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(rows * 32, columns * 32, 3)
    buffer = io.BytesIO()
    Image.fromarray(tiles).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"readme.html": b"<html>", "batches.meta": b"", **members}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pickled_batch(images: Pixels, labels: Pixels) -> bytes:
    """A batch as Python 2 and the numpy of 2009 pickled it: byte strings, and integers where numpy now wants bools."""
    rows = images.transpose(0, 3, 1, 2).tobytes()
    array = b"".join(
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR",
            b"(K\x01M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<I", len(rows)) + rows + b"tb",
        )
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def assert_same(data: Dataset, tiny: Tiny) -> None:
    loaded = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    for values, name in zip(loaded, ARRAYS, strict=True):
        np.testing.assert_array_equal(values, tiny.arrays[name])
    assert data.name == tiny.name
    assert [values.dtype.name for values in loaded] == ["uint8", "int64", "uint8", "int64"]


def test_repacked_files_are_read(tiny: Tiny, tmp_path: Path) -> None:
    """The npz and WebP files give the arrays they were made of, in order."""
    assert_same(load(tiny.name, tiny.write(tiny.repacked, tmp_path / "data")), tiny)


def test_canonical_files_are_read(tiny: Tiny, tmp_path: Path) -> None:
    """The files as published give the very same arrays in the same order."""
    assert_same(load(tiny.name, tiny.write(tiny.canonical, tmp_path / "data")), tiny)


@pytest.mark.parametrize("form", ["repacked", "canonical"])
def test_threes_and_sevens_are_read_from_mnists_files(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in both forms; a three is class 0 then, a seven 1, and each is named so."""
    arrays = random_arrays(28, 28)
    arrays["y_train"][:] = np.resize([7, 1, 3, 8, 3], 20)
    arrays["y_test"][:] = np.resize([3, 7, 0, 9, 5], 10)
    whole = Tiny("mnist", arrays, {"mnist.npz": npz(arrays)}, mnist_files(arrays))
    train, test = (np.isin(arrays[labels], (3, 7)) for labels in ("y_train", "y_test"))
    chosen = {
        "x_train": arrays["x_train"][train],
        "y_train": np.resize([1, 0, 0], 12).astype(np.uint8),
        "x_test": arrays["x_test"][test],
        "y_test": np.resize([0, 1], 4).astype(np.uint8),
    }
    part = Tiny("mnist_3_7", chosen, whole.repacked, whole.canonical)
    register(part, monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setitem(DATASETS, part.name, replace(DATASETS[part.name], n_train=12, n_test=4))
    assert_same(load(part.name, part.write(getattr(part, form), tmp_path / "data")), part)
    assert DATASETS[part.name].labels == ("3", "7")


def test_data_dir_comes_first(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATA_DIR is read even where the shared folder holds something else under the same names."""
    tiny.write(dict.fromkeys(tiny.repacked, b"not this"), tmp_path / "shared")
    monkeypatch.setenv("DATA_DIR", str(tiny.write(tiny.canonical, tmp_path / "mine")))
    assert_same(load(tiny.name), tiny)


def test_shared_folder_is_found_from_anywhere(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder beside the checkout is found whatever the current directory is."""
    tiny.write(tiny.repacked, tmp_path / "shared")
    monkeypatch.chdir("/")
    assert_same(load(tiny.name), tiny)


def test_cache_is_used_without_a_download(tiny: Tiny) -> None:
    """What the cache directory holds needs no network."""
    tiny.write(tiny.canonical, cache_directory())
    assert_same(load(tiny.name), tiny)


def test_cache_directory_without_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without XDG_CACHE_HOME the cache is in the home directory."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "trueodds"


# What is missing or damaged.


def test_empty_data_dir_is_an_error(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DATA_DIR that lacks the data is not replaced by another place; the error names files, source and remedy."""
    tiny.write(tiny.repacked, tmp_path / "shared")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(DataError) as caught:
        load(tiny.name)
    for part in (*tiny.canonical, *tiny.repacked, str(tmp_path / "empty"), "http://127.0.0.1:9", "unset"):
        assert part in str(caught.value)


def test_error_names_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are already there are not asked for."""
    tiny = tiny_cifar10()
    register(tiny, monkeypatch, "http://127.0.0.1:9")
    directory = tiny.write(tiny.repacked, tmp_path / "data")
    (directory / "cifar10_train_3.webp").unlink()
    with pytest.raises(DataError, match=r"or instead cifar10_train_3\.webp\. "):
        load(tiny.name, directory)


def test_every_damaged_file_is_named(tiny: Tiny, tmp_path: Path) -> None:
    """Cut short, emptied or overwritten, a file of either form gives a DataError that names it."""
    for form in (tiny.repacked, tiny.canonical):
        for name, content in form.items():
            for bad in (b"", b"nonsense", content[: len(content) // 2], content[:-40] + bytes(40)):
                directory = tiny.write({**form, name: bad}, tmp_path / sha256(name.encode() + bad))
                with pytest.raises(DataError, match=name):
                    load(tiny.name, directory)


def test_other_arrays_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    """An intact file with other labels than the data set's is refused."""
    other = {**tiny.arrays, "y_test": tiny.arrays["y_test"][::-1].copy()}
    name = next(name for name in tiny.repacked if name.endswith(".npz"))
    directory = tiny.write({**tiny.repacked, name: npz(other)}, tmp_path / "data")
    with pytest.raises(DataError, match=rf"{name}.*y_test has a SHA-256 other than"):
        load(tiny.name, directory)


def test_other_shapes_are_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images than the data set has are refused."""
    monkeypatch.setitem(DATASETS, tiny.name, replace(DATASETS[tiny.name], n_train=21))
    with pytest.raises(DataError, match=r"x_train is uint8 \(20, .*not uint8 \(21, "):
        load(tiny.name, tiny.write(tiny.repacked, tmp_path / "data"))


def test_archive_is_not_opened_before_its_digest_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive other than the published one is refused, however well-formed."""
    tiny = tiny_cifar10()
    register(tiny, monkeypatch, "http://127.0.0.1:9")
    other = archive({"data_batch_1": pickle.dumps(Hostile(tmp_path / "broken in"))})
    directory = tiny.write({"cifar-10-python.tar.gz": other}, tmp_path / "data")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged .*SHA-256"):
        load("cifar10", directory)
    assert not (tmp_path / "broken in").exists()


@dataclass(frozen=True)
class Hostile:
    """Creates a file when a plain unpickler reads it."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    """Nothing a pickle names is called, unless batches are made of it."""
    with pytest.raises(pickle.UnpicklingError, match="has no place in a CIFAR batch"):
        BatchUnpickler(io.BytesIO(pickle.dumps(Hostile(tmp_path / "broken in")))).load()
    assert not (tmp_path / "broken in").exists()


# Downloads, over a real socket.


@dataclass
class FileServer:
    """Serves files over HTTP on 127.0.0.1 and writes down what was asked of it.

    ranges: whether it knows the Range header. cuts: after how many bytes each of the next responses breaks off.
    length: whether it says how long a response is.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    length: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        wanted = request.headers["Range"]
        self.asked.append((name, wanted))
        if name not in self.files:
            request.send_error(404)
            return
        content = self.files[name]
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if self.ranges else 0
        request.send_response(206 if self.ranges else 200)
        if self.ranges:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if self.length:
            request.send_header("Content-Length", str(len(content) - first))
        request.end_headers()
        body = content[first:]
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        files.url = f"http://127.0.0.1:{http.server_port}"
        yield files
        http.shutdown()
        thread.join()


def test_missing_data_is_downloaded_once(tiny: Tiny, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nowhere is downloaded into the cache directory, and found there the next time."""
    server.files = tiny.canonical
    register(tiny, monkeypatch, server.url)
    assert_same(load(tiny.name), tiny)
    assert_same(load(tiny.name), tiny)
    assert sorted(name for name, _ in server.asked) == sorted(tiny.canonical)
    assert sorted(path.name for path in cache_directory().iterdir()) == sorted(tiny.canonical)


def test_only_what_is_missing_is_downloaded(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file the cache already has is not fetched again."""
    tiny = tiny_mnist()
    server.files = tiny.canonical
    register(tiny, monkeypatch, server.url)
    first, *others = tiny.canonical
    tiny.write({first: tiny.canonical[first]}, cache_directory())
    assert_same(load("mnist"), tiny)
    assert [name for name, _ in server.asked] == others


def test_offline_error_says_what_to_do(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the error names the file, its URL, where to put it, and DATA_DIR."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    register(tiny, monkeypatch, url)
    with pytest.raises(DataError) as caught:
        load(tiny.name)
    name = next(iter(tiny.canonical))
    for part in (f"{name} could not be downloaded", f"{url}/{name}: ", str(cache_directory() / name), "set DATA_DIR"):
        assert part in str(caught.value)


def test_cut_connection_is_resumed(server: FileServer, tmp_path: Path) -> None:
    """A download that is cut goes on where it stopped, without being asked."""
    server.files, server.cuts = {"a.bin": CONTENT}, [100_000, 50_000]
    path = download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=0-", "bytes=100000-", "bytes=150000-"]


def test_later_call_resumes(server: FileServer, tmp_path: Path) -> None:
    """What an earlier attempt brought is kept and only the rest is asked for."""
    server.files, server.cuts = {"a.bin": CONTENT}, [100_000, 0]
    file = remote("a.bin", CONTENT, f"{server.url}/a.bin")
    with pytest.raises(DownloadError, match="cut off after 100,000 of 300,000 bytes"):
        download(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin.partial"]
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("a.bin", "bytes=100000-")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_server_without_range_starts_again(server: FileServer, tmp_path: Path) -> None:
    """Where the server sends the whole file again, it replaces what was there."""
    server.files, server.ranges = {"a.bin": CONTENT}, False
    (tmp_path / "a.bin.partial").write_bytes(CONTENT[:1000])
    assert download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path).read_bytes() == CONTENT


def test_whole_partial_file_needs_no_request(server: FileServer, tmp_path: Path) -> None:
    """A download that only lacked its renaming is taken as it is."""
    (tmp_path / "a.bin.partial").write_bytes(CONTENT)
    assert download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path).read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_spoilt_partial_file_is_fetched_anew(server: FileServer, tmp_path: Path, left: bytes) -> None:
    """Wrong bytes left by an earlier attempt cost one more download, not the download."""
    server.files = {"a.bin": CONTENT}
    (tmp_path / "a.bin.partial").write_bytes(left)
    assert download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path).read_bytes() == CONTENT


def test_wrong_digest_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    """A file with another SHA-256 is thrown away, and the error gives its URL and both digests."""
    other = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    server.files = {"a.bin": other}
    with pytest.raises(DownloadError) as caught:
        download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path)
    for part in (f"{server.url}/a.bin", sha256(CONTENT), sha256(other)):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_file_of_another_size_is_refused_unread(server: FileServer, tmp_path: Path, ranges: bool) -> None:
    """A login page served in place of the file is not taken for its beginning."""
    server.files, server.ranges = {"a.bin": b"<html>please log in</html>"}, ranges
    with pytest.raises(DownloadError, match="the server offers"):
        download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_endless_response_is_cut_at_the_size(server: FileServer, tmp_path: Path) -> None:
    """No more is read than the file is long."""
    server.files, server.ranges, server.length = {"a.bin": CONTENT * 2}, False, False
    assert download(remote("a.bin", CONTENT, f"{server.url}/a.bin"), tmp_path).read_bytes() == CONTENT


def test_mirror_is_tried(server: FileServer, tmp_path: Path) -> None:
    """The second URL is asked when the first has no such file."""
    server.files = {"a.bin": CONTENT}
    urls = (f"{server.url}/moved.bin", f"{server.url}/a.bin")
    assert download(remote("a.bin", CONTENT, *urls), tmp_path).read_bytes() == CONTENT
    assert [name for name, _ in server.asked] == ["moved.bin", "a.bin"]


def test_error_names_every_url(server: FileServer, tmp_path: Path) -> None:
    """When no URL gives the file, each is named with its own failure."""
    urls = (f"{server.url}/one", f"{server.url}/two")
    with pytest.raises(DownloadError, match=r"/one: HTTP Error 404.*; .*/two: HTTP Error 404"):
        download(remote("a.bin", CONTENT, *urls), tmp_path)


def test_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and says nothing is given up."""
    monkeypatch.setattr("models.downloads.TIMEOUT_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(DownloadError, match="timed out"),
    ):
        download(remote("a.bin", CONTENT, f"http://127.0.0.1:{silent.getsockname()[1]}/a.bin"), tmp_path)


def test_unwritable_directory_is_a_download_error(tmp_path: Path) -> None:
    """A cache that cannot be made is reported like any other failure."""
    (tmp_path / "cache").write_text("a file where a directory should be")
    with pytest.raises(DownloadError, match="cache"):
        download(remote("a.bin", CONTENT, "http://127.0.0.1:9/a.bin"), tmp_path / "cache")


# The whole data, where it is at hand.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "per_class", "train", "test"),
    [
        (
            "mnist",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        ),
        (
            "mnist_3_7",
            [6131, 6265],
            "4030ab93f08ecefe831db4e80e5115d3d334dfd6d3613f4854a0ef00982969f3",
            "e166573fc6d30cccf2ee9ef8cdfa0693773c6dc57b1666f8e289a16fd1cdf2d6",
        ),
        (
            "cifar10",
            [5000] * 10,
            "a7051bcfbc5acdbf956087c1df8104040f37a9d7690e9fe02d3e194afd2e1fb5",
            "1249626010949d8f448e0faf792debbc3da0c50ed31bfff3678c99c37fbc7e48",
        ),
    ],
    ids=["mnist", "mnist_3_7", "cifar10"],
)
def test_shared_data_is_whole(name: str, per_class: list[int], train: str, test: str) -> None:
    """The shared folder's images are the recorded ones, in order, and each class has as many as published."""
    if DATASETS[name].repacked.missing(SHARED):
        pytest.skip(f"{SHARED} does not hold {name}")
    data = load(name, SHARED)
    assert np.bincount(data.train_labels).tolist() == per_class
    assert (sha256(data.train_images.tobytes()), sha256(data.test_images.tobytes())) == (train, test)
