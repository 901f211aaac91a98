"""The test images that are posted: tests/fixtures/<model>/<index>-<label>.png."""

from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


@dataclass(frozen=True)
class Image:
    """A PNG file whose label is known."""

    model: str
    index: int
    label: str
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "Image":
        index, label = path.stem.split("-", maxsplit=1)
        return cls(path.parent.name, int(index), label, path.read_bytes())

    @property
    def truncated(self) -> bytes:
        """The first half of the file, which no decoder can make a picture of."""
        return self.content[: len(self.content) // 2]


def read_images(folder: Path = FIXTURES) -> list[Image]:
    """All test images, those of the models in turn."""
    return sorted(map(Image.read, folder.glob("*/*-*.png")), key=lambda image: (image.index, image.model))
