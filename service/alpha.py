"""Transparency: what shows through a picture."""

import numpy as np
from PIL import Image


def over(image: Image.Image, background: int) -> Image.Image:
    """An RGBA picture laid on grey, 0–255."""
    paper = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(paper, image)


def contrasting_background(image: Image.Image) -> int:
    """Black under light strokes on transparency, else white."""
    alpha = np.asarray(image.getchannel("A"), np.float32)
    brightness = np.asarray(image.convert("L"))
    return 0 if (alpha * brightness).sum() > 128 * alpha.sum() else 255
