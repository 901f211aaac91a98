"""Looks for images that the decoder stumbles over: any exception but a problem, or more than a second for one input.

    python -m tests.abuse.fuzz_images --runs 100000

Guided by coverage of the Python code (atheris), from the fixtures and a small picture in each format. What it finds is
written to a file that it names.
"""

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import atheris
from PIL import Image

with atheris.instrument_imports(include=["service.images", "service.digits", "service.raster"]):
    from service import images

from service.errors import Problem
from tests.conftest import FIXTURES

# As in the settings, but for the pixels: fewer, that a run takes less time.
MAX_PIXELS, LONGEST_INPUT = 1_000_000, 16_384
SECONDS_AN_INPUT = 1
SPECS = [images.InputSpec(kind, 32, 32, (0.5,) * 3, (0.5,) * 3) for kind in ("digit", "photo")]
ALL_FORMATS = images.accepting(tuple(images.FORMATS))


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


def write_seeds(folder: Path) -> None:
    """The fixtures, and one picture in each format and in the rarer ways of some."""
    for model in ("digits", "cifar10"):
        for path in sorted((FIXTURES / model).glob("*.png"))[:8]:
            (folder / f"{model}-{path.name}").write_bytes(path.read_bytes())
    picture = Image.open(sorted((FIXTURES / "cifar10").glob("*.png"))[0]).convert("RGB")
    ways: list[tuple[str, dict[str, bool]]] = [(key, {}) for key in images.FORMATS]
    ways += [("jpeg", {"progressive": True}), ("webp", {"lossless": True})]
    for number, (key, options) in enumerate(ways):
        file = BytesIO()
        picture.save(file, key, **options)
        (folder / f"{number}.{key}").write_bytes(file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        limits = [f"-timeout={SECONDS_AN_INPUT}", f"-max_len={LONGEST_INPUT}", f"-runs={arguments.runs}"]
        atheris.Setup([sys.argv[0], *limits, "-rss_limit_mb=1024", *more, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
