"""Looks for images that the decoder stumbles over: any exception but a problem, or more than a second for one input.

    python -m tests.abuse.fuzz_images --runs 100000

Guided by coverage of the Python code (atheris), from the fixtures and small pictures in each format and in its rarer
ways. A PNG's checksums are mended after each change, else nothing behind them would be reached. What it finds is
written to a file that it names.

A run may be continued: `make fuzz RUNS=1000000 CORPUS=.cache/corpus` keeps there what reached new code.
"""

import argparse
import sys
import tempfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import atheris
import numpy as np
from PIL import Image, ImageOps

with atheris.instrument_imports(
    include=["service.images", "service.png", "service.bmp", "service.digits", "service.raster"]
):
    from service import images

from service.errors import Problem
from tests.conftest import FIXTURES

# As in the settings, but for the pixels: fewer, that a run takes less time.
MAX_PIXELS, LONGEST_INPUT = 1_000_000, 16_384
SECONDS_AN_INPUT = 1
SPECS = [images.InputSpec(kind, 32, 32, (0.5,) * 3, (0.5,) * 3) for kind in ("digit", "photo")]
ALL_FORMATS = images.accepting(tuple(images.FORMATS))
# Under atheris 3.0.0 the process grows by some 150 MB a million runs; the same kinds of damage without it leave nothing
# behind. So it is single allocations that are watched.
MEMORY_MB, ALLOCATION_MB = 8192, 512
PNG_START = b"\x89PNG\r\n\x1a\n"


def one(data: bytes) -> None:
    """Pixels or a problem."""
    try:
        picture = images.decode(images.read_header(data, MAX_PIXELS, ALL_FORMATS))
    except Problem as problem:
        if 400 <= problem.status < 500:
            return
        raise
    for spec in SPECS:
        assert images.to_pixels(picture, spec).shape == (32, 32, 3)


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Changed by atheris; a PNG's chunks with sound checksums, but for one of eight."""
    changed = bytes(atheris.Mutate(data, max_size))
    return mended(changed)[:max_size] if changed.startswith(PNG_START) and seed % 8 else changed


def mended(png: bytes) -> bytes:
    sound, at = bytearray(png), len(PNG_START)
    while at + 12 <= len(sound):
        end = at + 8 + int.from_bytes(sound[at : at + 4], "big")
        if end + 4 > len(sound):
            break
        sound[end : end + 4] = zlib.crc32(sound[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(sound)


def write_seeds(folder: Path) -> None:
    """The fixtures, and one picture in each format and in the rarer ways of some."""
    for model in ("digits", "cifar10"):
        for path in sorted((FIXTURES / model).glob("*.png"))[:8]:
            (folder / f"{model}-{path.name}").write_bytes(path.read_bytes())
    picture = Image.open(sorted((FIXTURES / "cifar10").glob("*.png"))[0]).convert("RGB").resize((14, 10))
    for number, (image, key, options) in enumerate(ways(picture)):
        file = BytesIO()
        image.save(file, key, **options)
        (folder / f"{number}.{key}").write_bytes(file.getvalue())


def ways(picture: Image.Image) -> Iterator[tuple[Image.Image, str, dict[str, Any]]]:
    """A picture, the format to write it in, and how."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"
    other, palette, clear = ImageOps.mirror(picture), picture.quantize(9), picture.convert("RGBA")
    clear.putalpha(picture.convert("L"))
    animated = {"save_all": True, "append_images": [other]}
    yield from ((picture, key, {}) for key in images.FORMATS)
    yield from ((picture, key, {"exif": exif}) for key in ("jpeg", "png", "webp"))
    yield from ((picture, key, animated) for key in ("png", "gif", "webp", "mpo"))
    yield from ((clear, key, {}) for key in ("png", "webp"))
    yield from ((image, "png", {}) for image in (picture.convert("1"), picture.convert("LA"), palette))
    yield Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257), "png", {}
    yield from ((image, "png", {"transparency": 0}) for image in (palette, picture.convert("L")))
    yield from ((palette, key, {"transparency": 0}) for key in ("gif",))
    yield from ((picture.convert(mode), "jpeg", {}) for mode in ("L", "CMYK"))
    yield from ((picture, "jpeg", options) for options in ({"progressive": True}, {"restart_marker_blocks": 1}))
    yield picture, "webp", {"lossless": True}
    yield from ((picture.convert(mode), "bmp", {}) for mode in ("1", "L", "P", "RGBA"))
    yield from ((picture, "tiff", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--corpus", type=Path, help="a folder of earlier finds, which new ones are added to")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        limits = [f"-timeout={SECONDS_AN_INPUT}", f"-max_len={LONGEST_INPUT}", f"-runs={arguments.runs}"]
        limits += [f"-rss_limit_mb={MEMORY_MB}", f"-malloc_limit_mb={ALLOCATION_MB}"]
        folders = [folder]
        if arguments.corpus:
            arguments.corpus.mkdir(parents=True, exist_ok=True)
            # New finds go to the first.
            folders.insert(0, str(arguments.corpus))
        atheris.Setup([sys.argv[0], *limits, *more, *folders], one, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
