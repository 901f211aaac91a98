"""Letters in print, as the service would see them drawn: what a reader of digits learns to be unsure of.

The fonts are those that come with matplotlib. Letters that are drawn as some digit is are left out, such as O, l and S.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.images import InputSpec, Pixels, to_pixels

UNLIKE_DIGITS = "ACEFHJKLMNPQRTUVWXYacdefhkmnprtuvwxy"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBol",
    "cmr10",
    "cmmi10",
    "cmss10",
    "cmtt10",
    "cmti10",
)
# Unicode's mathematical alphabets in script, bold script and Fraktur: the A of each. What the font lacks is left out.
ALPHABETS, ALPHABETS_FONT = (0x1D49C, 0x1D4D0, 0x1D504), "STIXGeneral"
SIZE = 60


def letters(spec: InputSpec) -> Pixels:
    """Every letter in every font, (N, H, W, 3) uint8, light on dark."""
    printed = [(character, font) for font in FONTS for character in UNLIKE_DIGITS]
    written = [(_in_alphabet(start, character), ALPHABETS_FONT) for start in ALPHABETS for character in UNLIKE_DIGITS]
    fonts = {name: ImageFont.truetype(_path(name), SIZE) for name in FONTS}
    drawings = (_drawn(character, fonts[name]) for character, name in printed + written)
    return np.stack([to_pixels(drawing, spec) for drawing in drawings if drawing.getbbox()])


def _path(font: str) -> Path:
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"


def _in_alphabet(start: int, character: str) -> str:
    place = ord(character) - ord("A") if character.isupper() else ord(character) - ord("a") + 26
    return chr(start + place)


def _drawn(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    drawing = Image.new("L", (2 * SIZE, 2 * SIZE))
    ImageDraw.Draw(drawing).text((SIZE, SIZE), character, 255, font, anchor="mm")
    return drawing
