"""What is posted: bodies made of the test images, each kind for one endpoint's way of taking images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.images import Image, read_images
from service.images import Pixels

BULK = 64
BOUNDARY = "trueodds-boundary"
PART = (
    b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%d.png"\r\nContent-Type: image/png\r\n\r\n%b\r\n'
)


@dataclass(frozen=True)
class Body:
    """Files that are posted in turn, each of so many images. `accept` is empty where JSON is to be answered,
    `authorization` where nobody asks for any.
    """

    content_type: str
    files: tuple[Path, ...]
    images: int = 1
    accept: str = ""
    authorization: str = ""

    @property
    def headers(self) -> dict[str, str]:
        optional = {"Accept": self.accept, "Authorization": self.authorization}
        return {"Content-Type": self.content_type, **{name: value for name, value in optional.items() if value}}


def images_of(model: str) -> list[Image]:
    """The test images of a model."""
    return [image for image in read_images() if image.model == model]


def single(model: str, folder: Path) -> Body:
    """One PNG a request, all test images of the model in turn."""
    return Body(
        "image/png",
        tuple(_write(folder / f"{model}-{i}.png", image.content) for i, image in enumerate(images_of(model))),
    )


def form(model: str, folder: Path) -> Body:
    """BULK PNGs in one multipart form."""
    parts = [PART % (BOUNDARY.encode(), i, image.content) for i, image in enumerate(images_of(model)[:BULK])]
    content = b"".join([*parts, b"--%b--\r\n" % BOUNDARY.encode()])
    return Body(
        f"multipart/form-data; boundary={BOUNDARY}", (_write(folder / f"{model}.form", content),), images=len(parts)
    )


def tensor(model: str, pixels: Pixels, folder: Path) -> Body:
    """(N, H, W, 3) uint8 as one .npy file."""
    path = folder / f"{model}.npy"
    np.save(path, pixels)
    return Body("application/x-npy", (path,), images=len(pixels))


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
