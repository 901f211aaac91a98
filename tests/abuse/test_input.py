"""What strangers send, end to end: hostile images, compressed bodies, timeouts that are none; then a good request."""

import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Server, fixtures, serving
from tests.test_service import problem

pytestmark = pytest.mark.container

GOOD = fixtures("digits")[0][0]
NPY = BytesIO()
np.save(NPY, np.zeros((2, 32, 32, 3), np.uint8))
FORM = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + GOOD + b"\r\n--x--\r\n"
BODIES = [
    pytest.param({"content-type": "image/png"}, GOOD, id="image"),
    pytest.param({"content-type": "application/octet-stream"}, GOOD, id="octets"),
    pytest.param({"content-type": "multipart/form-data; boundary=x"}, FORM, id="form"),
    pytest.param({"content-type": "application/x-npy"}, NPY.getvalue(), id="npy"),
    pytest.param(
        {"content-type": "application/octet-stream", "x-tensor-shape": "1,32,32,3"}, bytes(32 * 32 * 3), id="tensor"
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("headers", "body"), BODIES)
def test_a_compressed_body_is_refused_whatever_it_holds(server: Server, headers: dict[str, str], body: bytes) -> None:
    """415 with Accept-Encoding, again and again under one head; identity is no compression."""
    url = f"{server.url}/v1/models/digits/classify"
    with httpx.Client(headers=headers) as client:
        for encoding in ("gzip", "deflate", "br", "gzip, identity"):
            for _ in range(3):
                refusal = client.post(url, content=zlib.compress(body), headers={"content-encoding": encoding})
                problem(refusal, 415)
                assert refusal.headers["accept-encoding"] == "identity"
        for _ in range(3):
            assert client.post(url, content=body, headers={"content-encoding": "identity"}).status_code == 200


def test_a_compressed_body_is_refused_for_bentoml_too(server: Server) -> None:
    """Its routes inflate nothing either."""
    body = zlib.compress(b"{}")
    problem(httpx.post(f"{server.url}/classify_pixels", content=body, headers={"content-encoding": "gzip"}), 415)


@pytest.mark.parametrize(("headers", "body"), BODIES)
def test_a_timeout_is_a_number_or_refused(server: Server, headers: dict[str, str], body: bytes) -> None:
    """400 for what is none; a sane one changes nothing about an answer that is in time."""
    url = f"{server.url}/v1/models/digits/classify"
    with httpx.Client(headers=headers) as client:
        for value in ("0", "-5", "soon", "1.5", ""):
            for _ in range(2):
                problem(client.post(url, content=body, headers={"x-request-timeout-ms": value}), 400)
        for _ in range(3):
            assert client.post(url, content=body, headers={"x-request-timeout-ms": "9000"}).status_code == 200


# Eight large pictures, one after another, may take longer than the usual wait where others use the cores as well.
ALONE = {"TRUEODDS_WORKERS": "1", "TRUEODDS_MODELS": "digits", "TRUEODDS_MAX_WAIT_MS": "60000"}


@pytest.fixture(scope="module")
def lone_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("alone"), ALONE) as running:
        yield running


def bombs() -> dict[str, bytes]:
    jpeg = BytesIO()
    Image.new("RGB", (16, 16), "red").save(jpeg, "JPEG")
    lying = bytearray(jpeg.getvalue())
    frame = lying.index(b"\xff\xc0")
    lying[frame + 5 : frame + 9] = struct.pack(">HH", 5000, 5000)
    png = BytesIO()
    Image.new("L", (5000, 5000)).save(png, "PNG")
    screen = b"GIF89a" + struct.pack("<HHBBB", 5000, 5000, 0, 0, 0) + b"!\xf9\x04\x08\0\0\0\0"
    pixel = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0;"
    return {
        "GIF": screen + pixel,
        "JPEG": bytes(lying),
        "PNG cut": png.getvalue()[:-40],
        "too many": GOOD[:16] + struct.pack(">II", 60_000, 60_000) + GOOD[24:],
    }


def peak_bytes(pid: int) -> int:
    """The most resident memory of a process and its children, ever or since it was reset."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(_high_water(int(each)) for each in [pid, *map(int, children)])


def _high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell peaks")
def test_eight_bombs_at_once_take_little(lone_worker: Server) -> None:
    """Each is refused as 4xx; together they take no more than 100 MB, and a good image is answered as before."""
    assert lone_worker.post("digits", GOOD).status_code == 200
    before = peak_bytes(lone_worker.pid)
    for name, body in bombs().items():
        with ThreadPoolExecutor(8) as pool:
            started = time.monotonic()
            answers = list(pool.map(lambda _, body=body: lone_worker.post("digits", body), range(8)))
        assert {answer.status_code for answer in answers} <= {400, 413}, name
        assert time.monotonic() - started < 10
    assert peak_bytes(lone_worker.pid) - before < 100 * 1024 * 1024
    assert lone_worker.post("digits", GOOD).status_code == 200


def largest(file_format: str) -> bytes:
    """As many pixels as are accepted, in the way that takes the most memory."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "PNG": ("RGBA", {}),
        "JPEG": ("CMYK", {"progressive": True}),
        "WEBP": ("RGBA", {"lossless": True, "method": 0}),
        "GIF": ("L", {}),
    }
    mode, options = ways[file_format]
    file = BytesIO()
    Image.new(mode, (5000, 5000), "white").save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_largest_pictures_are_decoded_one_at_a_time(lone_worker: Server, file_format: str) -> None:
    """Eight at once of as many pixels as are accepted take no more memory than one and what it is made of."""
    body = largest(file_format)
    assert lone_worker.post("digits", body).status_code == 200
    before = peak_bytes(lone_worker.pid)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: lone_worker.post("digits", body), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert peak_bytes(lone_worker.pid) - before < 100 * 1024 * 1024


@pytest.mark.slow
def test_rows_that_end_early_are_answered_400(lone_worker: Server) -> None:
    """Small and large, alone and in a form beside a good one."""
    for side in (28, 2000):
        rows = zlib.compress(bytes((side + 1) * (side - 1)))
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        body = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
        )
        problem(lone_worker.post("digits", body), 400)
    assert lone_worker.post("digits", GOOD).status_code == 200


@pytest.mark.slow
def test_formats_by_setting(tmp_path: Path) -> None:
    """TIFF where the settings say so; what they leave out is 415."""
    file = BytesIO()
    Image.open(BytesIO(GOOD)).save(file, "TIFF")
    with serving(tmp_path, {"TRUEODDS_MODELS": "digits", "TRUEODDS_FORMATS": "tiff,jpeg"}) as running:
        answer = running.post("digits", file.getvalue(), "image/tiff")
        assert answer.json()["predictions"][0]["label"] == fixtures("digits")[0][1]
        refusal = running.post("digits", GOOD)
        assert "send JPEG and TIFF." in str(problem(refusal, 415)["detail"])
