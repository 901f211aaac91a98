"""A kind of damage to images, and the numbers that say how much of it each severity does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.formats import Pixels

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Constants = tuple[float, ...]
# One for each image, so that what happens to an image does not depend on which others are corrupted with it.
Generators = Sequence[np.random.Generator]
Damage = Callable[[Pixels, Constants, Generators], Pixels]


@dataclass(frozen=True)
class Corruption:
    """damage: (N, H, W) or (N, H, W, 3) uint8 → the same shape, uint8. constants: of severity 1, 2, …, mildest first.

    kind: under which figures of several corruptions are averaged.
    """

    kind: str
    damage: Damage
    constants: tuple[Constants, ...]

    @property
    def severities(self) -> range:
        return range(1, len(self.constants) + 1)

    def corrupted(self, images: Pixels, severity: int, indices: Indices, seed: int = 0) -> Pixels:
        """Images (N, …) uint8 → the same, corrupted. `indices` (N,) are their places in the data set.

        An image's randomness follows from seed, severity and index alone. Raises ValueError for no such severity.
        """
        if severity not in self.severities:
            raise ValueError(f"severity {severity} is not among 1 to {len(self.constants)}")
        generators = [np.random.default_rng((seed, severity, int(index))) for index in indices]
        return self.damage(images, self.constants[severity - 1], generators)


def unit(images: Pixels) -> Floats:
    """uint8 → [0, 1]."""
    return images / 255


def pixels(scaled: Floats) -> Pixels:
    """[0, 1] → uint8, rounded down as numpy's conversion does, which the published sets were made by."""
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def normals(generators: Generators, shape: tuple[int, ...]) -> Floats:
    """Standard normal draws, (N, *shape)."""
    return np.stack([generator.standard_normal(shape) for generator in generators])


def uniforms(generators: Generators, shape: tuple[int, ...], low: float = 0, high: float = 1) -> Floats:
    """(N, *shape)."""
    return np.stack([generator.uniform(low, high, shape) for generator in generators])


def per_image(values: Floats, images: npt.NDArray[np.generic]) -> Floats:
    """(N,) or (N, H, W) → as many axes as the images, to be broadcast over the rest."""
    return values.reshape(values.shape + (1,) * (images.ndim - values.ndim))
