"""What a trained network says of the training images, to be learnt beside their labels (Hinton et al. 2015,
arXiv:1503.02531).

A network learns best from what its teacher says of the very picture that it is shown (Beyer et al. 2022,
arXiv:2106.05237). But a large teacher takes longer to answer than a small network to learn, so there are only so many
views of each image, and all are answered before the first step.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import weights_path
from models.downloads import sha256_of
from models.evaluate import logits
from models.files import replacing
from models.formats import DAMAGE, DataError
from models.networks import load_network, untrained
from models.precision import Precision, autocast
from models.recipe import Augment, Teacher
from models.task import Task

# Images that are augmented at a time: all at once would take some GB for copies.
AT_ONCE = 1000


@dataclass(frozen=True)
class Shown:
    """To a network in one epoch: images (N, 3, H, W), augmented, and the teacher's logits (N, classes)."""

    images: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Lessons:
    """images: (N, 3, H, W) as they are before any augmentation. answers: (views, N, classes), the teacher's logits.

    seconds: that it took to get them.
    """

    teacher: Teacher
    images: Tensor
    augment: Augment
    seed: int
    answers: Tensor
    seconds: float

    def of(self, epoch: int) -> Shown:
        """The views are taken in turn."""
        number = epoch % self.teacher.views
        return Shown(view(self.images, self.augment, number, self.seed), self.answers[number])


def lessons(
    task: Task, images: Tensor, seed: int, device: torch.device, precision: Precision, path: Path
) -> Lessons | None:
    """Ask the teacher of the task's recipe, if it has one, or read what it said before. Raises DataError.

    images: (N, 3, H, W), the task's to train on.
    path: where its answers are kept, after every view, so that an interrupted command goes on from there.
    """
    teacher, augment = task.recipe.teacher, task.recipe.augment
    if teacher is None:
        return None
    weights = weights_path(teacher.name)
    net = load_network(untrained(teacher.name), weights).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = {"teacher": sha256_of(weights), "images": task.digests, "seed": seed, "precision": precision}
    answers, seconds = _known(path, identity)
    with tqdm(desc=f"asking {teacher.name}", initial=len(answers), total=teacher.views, disable=None) as bar:
        while len(answers) < teacher.views:
            started = time.perf_counter()
            seen = view(images, augment, len(answers), seed)
            with autocast(device, precision):
                answers.append(logits(net, seen, device))
            seconds += time.perf_counter() - started
            with replacing(path) as partial:
                torch.save({"identity": identity, "answers": answers, "seconds": seconds}, partial)
            bar.update()
            # A file gets no bar.
            tqdm.write(f"{teacher.name} has answered view {len(answers)}/{teacher.views}")
    return Lessons(teacher, images, augment, seed, torch.stack(answers[: teacher.views]), seconds)


def view(images: Tensor, augment: Augment, number: int, seed: int) -> Tensor:
    """All images (N, 3, H, W), augmented; for the same number and seed always alike."""
    generator = torch.Generator().manual_seed(seed * 100_003 + number)
    places = torch.arange(len(images))
    parts = zip(images.split(AT_ONCE), places.split(AT_ONCE), strict=True)
    return torch.cat([augment(part, number, place, generator) for part, place in parts])


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of the student's answers from the teacher's, the latter softened, both logits (N, classes): the mean, in nats.

    A teacher is surer of the images that it has learnt than it is right about others. Who softens both, as published,
    teaches that too; if the teacher's alone are, a student is less sure than it is right, and learns more.
    """
    said = nn.functional.log_softmax(student, 1)
    meant = nn.functional.log_softmax(teacher / temperature, 1)
    return nn.functional.kl_div(said, meant, reduction="batchmean", log_target=True)


def _known(path: Path, identity: dict[str, Any]) -> tuple[list[Tensor], float]:
    """The answers in the file, if there is one, and the seconds they took. Raises DataError."""
    if not path.exists():
        return [], 0.0
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        answers, seconds, of = list(kept["answers"]), float(kept["seconds"]), kept["identity"]
    except (*DAMAGE, TypeError) as error:
        raise DataError(f"{path} is damaged; delete it to ask again") from error
    if of != identity:
        raise DataError(f"{path} is of another teacher or of other images; delete it to ask again")
    return answers, seconds
