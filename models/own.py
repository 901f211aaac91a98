"""What a network is to learn of somebody's own images, and where all of that is kept: runs/<name>/.

task.json         where the images are, what the network is fed, its classes, and which images are in which split
findings.txt      what is wrong with the images
weights.pt, .json what was learnt, and how
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import MODELS, RUNS, finetune, photo_net
from models.collection import Collection, collect
from models.datasets import DATASETS
from models.files import replacing
from models.formats import DataError, Pixels
from models.network import Network
from models.partition import digest_of, partition
from models.recipe import Recipe
from models.task import Part, Split, Task
from service.images import InputSpec

# As a bundle may be named.
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
SIZES = (photo_net.SMALLEST, 512)


@dataclass(frozen=True)
class Wish:
    """data: a folder or CSV. start: a network of the zoo to be fine-tuned, or None. size: pixels a side.

    mirror: whether an image and its mirror image are of one class.
    """

    data: Path
    start: str | None = None
    size: int = 32
    mirror: bool = True

    @property
    def terms(self) -> tuple[str, ...]:
        """As options of the command."""
        how = ("--from", self.start) if self.start else ("--size", str(self.size))
        return how if self.mirror else (*how, "--no-mirror")


def begin(name: str, wish: Wish) -> Task:
    """Look at the images, tell what is wrong with them, and note what is to be learnt. Raises DataError."""
    _check(name, wish)
    collection = collect(wish.data, _seen_as(wish))
    for finding in collection.findings:
        print(finding.told())
    task = _task(name, wish, collection)
    _tell(task)
    with replacing(weights_of(name).with_name("findings.txt")) as path:
        path.write_text("\n".join(finding.told(shown=None) for finding in collection.findings) + "\n")
    with replacing(_note(name)) as path:
        path.write_text(json.dumps(_noted(wish, task), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return task


def reopen(name: str) -> Task:
    """What `begin` noted, with the images as they are now. Raises DataError if they are others."""
    wish, noted = _read(name)
    task = _task(name, wish, collect(wish.data, _seen_as(wish)))
    if _noted(wish, task) != noted:
        raise DataError(
            f"the images of {wish.data} are not those that {name} was trained on; train it again, or bring those back"
        )
    return task


def network(name: str) -> Network:
    """As it was before it learnt. Raises DataError."""
    wish, noted = _read(name)
    return recipe_of(wish, len(noted["labels"]), images=1).build()


def known() -> list[str]:
    """The names under which somebody's own images were learnt, from here."""
    return sorted(path.parent.name for path in RUNS.glob("*/task.json"))


def weights_of(name: str) -> Path:
    return RUNS / name / "weights.pt"


def recipe_of(wish: Wish, classes: int, images: int) -> Recipe:
    """For so many classes and training images. Raises DataError."""
    if wish.start is None:
        return photo_net.recipe(classes, images, wish.mirror)
    return finetune.recipe(wish.start, classes, images, wish.mirror)


def _check(name: str, wish: Wish) -> None:
    if not NAME.fullmatch(name):
        raise DataError(f"{name!r} cannot name a model: small letters, digits, - and _ can, a letter or digit first")
    if name in MODELS:
        raise DataError(f"{name} is a network of the zoo; give yours another name")
    low, high = SIZES
    if not low <= wish.size <= high:
        raise DataError(f"images cannot be {wish.size} pixels a side, but from {low} to {high}")
    if wish.start and wish.size != (expected := _spec_of(wish.start).height):
        raise DataError(f"{wish.start} sees {expected} pixels a side, so leave --size out; without --from any will do")


def _spec_of(start: str) -> InputSpec:
    return DATASETS[MODELS[start].dataset].input


def _seen_as(wish: Wish) -> InputSpec:
    """Of which only what decides the pixels counts yet."""
    return _spec_of(wish.start) if wish.start else InputSpec("photo", wish.size, wish.size, (0.0,) * 3, (1.0,) * 3)


def _task(name: str, wish: Wish, collection: Collection) -> Task:
    splits = partition(collection.classes, collection.digests)
    spec = _seen_as(wish) if wish.start else _standardising(_seen_as(wish), collection.pixels[splits["train"]])
    digests: dict[str, str] = {split: digest_of(collection.digests, indices) for split, indices in splits.items()}
    recipe = recipe_of(wish, len(collection.labels), len(splits["train"]))

    def part(split: Split) -> Part:
        return Part(collection.pixels[splits[split]], collection.classes[splits[split]])

    return Task(name, recipe, name, spec, collection.labels, part, digests, wish.terms)


def _standardising(spec: InputSpec, pixels: Pixels) -> InputSpec:
    """With mean and standard deviation per channel of these pixels, (N, H, W, 3)."""
    scaled = pixels.reshape(-1, 3) / 255
    # No colour varies so little that its noise should count.
    mean, std = scaled.mean(0), np.maximum(scaled.std(0), 0.02)
    red, green, blue = ((round(float(m), 4), round(float(s), 4)) for m, s in zip(mean, std, strict=True))
    return replace(spec, mean=(red[0], green[0], blue[0]), std=(red[1], green[1], blue[1]))


def _tell(task: Task) -> None:
    sizes = {split: len(task.part(split).labels) for split in ("train", "fit", "conformal", "test")}
    print(f"{len(task.labels)} classes; images: " + ", ".join(f"{split} {n:,}" for split, n in sizes.items()))


def _note(name: str) -> Path:
    return RUNS / name / "task.json"


def _read(name: str) -> tuple[Wish, dict[str, Any]]:
    path = _note(name)
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return Wish(Path(noted["data"]), noted["start"], noted["size"], noted["mirror"]), noted
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); python -m models.train {name} --data … writes it") from error


def _noted(wish: Wish, task: Task) -> dict[str, Any]:
    document = {
        "data": str(wish.data.resolve()),
        "start": wish.start,
        "size": wish.size,
        "mirror": wish.mirror,
        "labels": list(task.labels),
        "input": asdict(task.spec),
        "splits": task.digests,
    }
    return json.loads(json.dumps(document))
