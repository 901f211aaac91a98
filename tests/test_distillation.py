"""Learning from a trained network's answers beside the labels."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax
from torch import Tensor

from models import distillation, evaluate, teaching
from models.distillation import Lessons, divergence, lessons, view
from models.files import replacing
from models.formats import DataError
from models.recipe import Teacher
from models.task import Task
from models.teaching import Plan, teach
from tests import lesson
from tests.conftest import interrupted

CPU = torch.device("cpu")
TEACHER = Teacher("a teacher", views=3, weight=1.0, temperature=2.0)
RECIPE = replace(lesson.RECIPE, teacher=TEACHER)
TASK = lesson.task(RECIPE)
logits = arrays.arrays(np.float64, (4, 3), elements=st.floats(-8, 8))


class Contrary(lesson.Little):
    """Says of each image what is true of another class: the label plus one."""

    def features(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None]

    def classify(self, features: Tensor) -> Tensor:
        # Noise of the three classes is 78, 128 and 178 on average, and normalised −0.8, 0 and 0.8.
        level = torch.bucketize(features[:, 0], torch.tensor([-0.4, 0.4]))
        return 8.0 * torch.nn.functional.one_hot((level + 1) % 3, 3).float()


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The teacher's weights lie in tmp_path, which is where runs are written."""
    net = Contrary()
    torch.save(net.state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "teacher.json").write_text("{}")
    monkeypatch.setattr(distillation, "weights_path", lambda name: tmp_path / "teacher.pt")
    monkeypatch.setattr(distillation, "untrained", lambda name: Contrary())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images() -> Tensor:
    return lesson.task().images("train").images


def asked(path: Path, task: Task = TASK, seed: int = 0) -> Lessons:
    found = lessons(task, images(), seed, CPU, "float32", path)
    assert found is not None
    return found


# What is learnt.


@given(logits, logits, st.floats(0.5, 8))
def test_divergence_is_that_of_softened_answers(student: np.ndarray, teacher: np.ndarray, temperature: float) -> None:
    """Kullback and Leibler's, by its definition; the student's own answers are left as they are."""
    said, meant = log_softmax(student, 1), log_softmax(teacher / temperature, 1)
    expected = (np.exp(meant) * (meant - said)).sum(1).mean()
    found = divergence(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert found.item() == pytest.approx(expected, abs=1e-9)
    assert divergence(torch.from_numpy(teacher / temperature), torch.from_numpy(teacher), temperature).item() == (
        pytest.approx(0, abs=1e-9)
    )


def test_the_teacher_is_believed_as_far_as_it_has_weight(taught: Path) -> None:
    """With all of it a network learns what the teacher says, however wrong; with none, what the labels say."""
    task, plan = lesson.task(), Plan(epochs=30)

    def agreement(weight: float) -> tuple[float, float]:
        recipe = replace(RECIPE, teacher=replace(TEACHER, weight=weight))
        kept = taught / f"weights-{weight}.pt"
        teach(replace(task, recipe=recipe, name=f"student-{weight}"), plan, ["command"], kept)
        net = lesson.Little()
        net.load_state_dict(torch.load(kept, weights_only=True))
        test = task.images("test")
        answers = evaluate.logits(net, test.images, CPU).argmax(1)
        contrary = (test.labels + 1) % 3
        return (answers == test.labels).float().mean().item(), (answers == contrary).float().mean().item()

    right, contrary = agreement(1.0)
    assert contrary > 0.9 > 0.1 > right
    right, contrary = agreement(0.0)
    assert right > 0.9 > 0.1 > contrary


def test_the_record_tells_who_taught_and_counts_the_asking(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains it again has to wait for the teacher, too."""
    waited = lessons(TASK, images(), 0, CPU, "float32", Path("waited.pt"))
    assert waited is not None
    assert waited.seconds > 0
    monkeypatch.setattr(distillation, "lessons", lambda *given: replace(waited, seconds=600.0))
    teach(lesson.task(RECIPE), Plan(epochs=1), ["command"], taught / "weights.pt")
    record = json.loads((taught / "weights.json").read_text())
    assert record["teacher"] == {"name": "a teacher", "views": 3, "weight": 1.0, "temperature": 2.0}
    assert record["minutes"] >= 10


# What is shown.


def test_epochs_show_the_views_in_turn(taught: Path) -> None:
    """Another in each, and the same again after all; each with what the teacher says of it."""
    course = asked(taught / "answers.pt")
    shown = [course.of(epoch) for epoch in range(4)]
    assert torch.equal(shown[0].images, shown[3].images)
    assert torch.equal(shown[0].answers, shown[3].answers)
    assert not torch.equal(shown[0].images, shown[1].images)
    net = Contrary()
    for each in shown:
        assert torch.allclose(evaluate.logits(net, each.images, CPU), each.answers)


def test_a_view_is_the_augmentation_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts or not: each image is augmented as its place and the view's number say."""
    seen: list[tuple[int, int, int]] = []

    def noted(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((epoch, int(order[0]), len(order)))
        return images + order[:, None, None, None]

    monkeypatch.setattr(distillation, "AT_ONCE", 32)
    augmented = view(torch.zeros(70, 3, 8, 8), noted, 2, 0)
    assert seen == [(2, 0, 32), (2, 32, 32), (2, 64, 6)]
    assert torch.equal(augmented[:, 0, 0, 0], torch.arange(70.0))


def test_another_seed_sees_other_views() -> None:
    """And the same seed the same."""
    first, again, other = (view(images(), lesson.augment, 0, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# What is kept.


def test_answers_that_are_there_are_not_asked_for_again(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before the third view, it asks for that one alone, and ends with what it would have had."""
    whole = asked(taught / "whole.pt").answers
    calls = interrupted(monkeypatch, distillation, "logits", at=3)
    with pytest.raises(KeyboardInterrupt):
        asked(taught / "answers.pt")
    assert torch.equal(asked(taught / "answers.pt").answers, whole)
    assert len(calls) == 4
    asked(taught / "answers.pt")
    assert len(calls) == 4


def test_answers_of_other_images_are_refused(taught: Path) -> None:
    """As many, but others."""
    asked(taught / "answers.pt")
    with pytest.raises(DataError, match="other images"):
        asked(taught / "answers.pt", replace(TASK, digests=TASK.digests | {"train": "others"}))


def test_answers_of_another_teacher_or_seed_are_refused(taught: Path) -> None:
    """They are of other pictures, or another's; nobody would notice."""
    asked(taught / "answers.pt")
    with pytest.raises(DataError, match="delete it"):
        asked(taught / "answers.pt", seed=1)
    with replacing(taught / "teacher.pt") as path:
        torch.save(lesson.Little().state_dict(), path)
    with pytest.raises(DataError, match="another teacher"):
        asked(taught / "answers.pt")


@pytest.mark.parametrize("content", [b"", b"cut off"])
def test_damaged_answers_are_named(taught: Path, content: bytes) -> None:
    """With the remedy."""
    (taught / "answers.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"answers\.pt is damaged; delete it"):
        asked(taught / "answers.pt")


def test_a_teacher_that_was_not_trained_is_named(taught: Path) -> None:
    """With the command that trains it."""
    (taught / "teacher.pt").unlink()
    with pytest.raises(DataError, match=r"python -m models\.train"):
        asked(taught / "answers.pt")


def test_each_view_that_is_answered_is_told(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the output is a file, too: it takes minutes."""
    asked(taught / "answers.pt")
    told = [line for line in capsys.readouterr().out.splitlines() if "view" in line]
    assert told == [f"a teacher has answered view {number}/3" for number in (1, 2, 3)]


def test_who_has_no_teacher_asks_none(taught: Path) -> None:
    """Nothing is written, either."""
    assert lessons(lesson.task(), images(), 0, CPU, "float32", taught / "answers.pt") is None
    assert not (taught / "answers.pt").exists()


def test_an_interrupted_lesson_with_a_teacher_ends_as_an_uninterrupted_one(
    taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of its second epoch, it goes on with the view that it was shown."""
    task = lesson.task(RECIPE)
    teach(task, Plan(epochs=3), ["command"], taught / "whole.pt")
    for written in (taught / "runs").rglob("*.pt"):
        written.unlink()
    interrupted(monkeypatch, teaching, "_step", at=7)
    with pytest.raises(KeyboardInterrupt):
        teach(task, Plan(epochs=3, checkpoint_s=0.0), ["command"], taught / "parts.pt")
    teach(task, Plan(epochs=3, checkpoint_s=0.0), ["command"], taught / "parts.pt")
    whole, parts = (torch.load(taught / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    for name, value in parts.items():
        assert torch.equal(value, whole[name]), name
