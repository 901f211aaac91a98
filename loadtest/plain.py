"""The loop that anybody would write: Pillow, ONNX Runtime and json at their defaults, on a model's ONNX file.

Other servers are measured against such a loop. It does not put a digit into its frame, and tells probabilities only.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from service.backends import Floats
from service.images import Pixels


class PlainLoop:
    """One process of it, on so many threads. `shape` is the height and width that the model takes."""

    def __init__(self, model: Path, shape: tuple[int, int], threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._size = shape[1], shape[0]

    def classify(self, files: Iterable[bytes]) -> bytes:
        """Files → JSON, by one inference."""
        return _json([self._probabilities(np.stack([self._pixels(file) for file in files]))])

    def classify_tensor(self, npy: bytes, batch: int) -> bytes:
        """A .npy file → JSON, by inferences of so many."""
        return _json(self._of_tensor(npy, batch))

    def classify_tensor_to_binary(self, npy: bytes, batch: int) -> bytes:
        """The same as the bytes of the numbers."""
        return np.concatenate(self._of_tensor(npy, batch)).tobytes()

    def _of_tensor(self, npy: bytes, batch: int) -> list[Floats]:
        pixels = np.load(io.BytesIO(npy))
        return [self._probabilities(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]

    def _pixels(self, file: bytes) -> Pixels:
        image: Image.Image = Image.open(io.BytesIO(file))
        if image.mode != "RGB":
            image = image.convert("RGB")
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        return np.asarray(image)

    def _probabilities(self, pixels: Pixels) -> Floats:
        probabilities: Floats = self._session.run(["probabilities"], {"pixels": pixels})[0]
        return probabilities


def _json(batches: Sequence[Floats]) -> bytes:
    rows = [row for batch in batches for row in batch.tolist()]
    return json.dumps([{"probabilities": row} for row in rows]).encode()
