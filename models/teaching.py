"""A training run, from the images to the weights."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import RUNS, curves, distillation, precision, record, weights_path
from models.activations import Activations
from models.checkpoint import Checkpoint
from models.distillation import Lessons, Shown
from models.evaluate import Score, score
from models.networks import load_network, untrained
from models.precision import Choice, Precision
from models.progress import Run
from models.recipe import Recipe, Schedule
from models.stopping import best_epoch, exhausted
from models.task import Images, Task
from models.tensorboard import Log

# Of a run so many steps, or up to twice as many, are looked at for the pictures of activations.
LOOKS = 250


@dataclass(frozen=True)
class Plan:
    """How a recipe is followed this time.

    epochs: None for as many as the recipe says.
    patience: epochs without a better one after which training ends, with the weights of the best; None: never.
    checkpoint_s: seconds between checkpoints within an epoch. plot, tensorboard: draw pictures, write a log.
    """

    epochs: int | None = None
    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  a value, not a thing that changes
    precision: Choice = "auto"
    patience: int | None = None
    checkpoint_s: float = 60.0
    plot: bool = False
    tensorboard: bool = False


@dataclass
class Teaching:
    """A run under way, and all that stays the same while it is.

    strangers: (N, 3, H, W), of no class. lessons: what a teacher says of the images, where the recipe has one.
    """

    run: Run
    recipe: Recipe
    training: Images
    strangers: Tensor | None
    lessons: Lessons | None
    schedule: Schedule
    plan: Plan
    precision: Precision
    checkpoint: Checkpoint
    log: Log | None = None

    @property
    def step(self) -> int:
        """Batches trained on so far."""
        return self.run.progress.epoch * self.schedule.steps_per_epoch + self.run.progress.step


def teach(task: Task, plan: Plan, command: list[str], kept: Path) -> None:
    """Train, write checkpoints, and at last what is kept: weights and record, or the record alone. Raises DataError."""
    recipe = task.recipe
    epochs = plan.epochs or recipe.epochs
    place = RUNS / task.name / f"seed{plan.seed}-epochs{epochs}"

    # Data.
    training, held_out = task.images("train"), task.images("fit")
    strangers = task.strangers()

    # Teacher.
    numbers = precision.chosen(plan.precision, recipe.bf16, plan.device)
    said = place.with_name(f"seed{plan.seed}-answers.pt")
    lessons = distillation.lessons(task, training.images, plan.seed, plan.device, numbers, said)

    # Network.
    torch.manual_seed(plan.seed)
    net = recipe.build()
    recipe.prepare(net, training.images)
    if ancestor := recipe.ancestor:
        ancestor.inherit(net, load_network(untrained(ancestor.name), weights_path(ancestor.name)).state_dict())
    net.to(plan.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # Optimisers.
    schedule = Schedule(epochs, len(training.images) // recipe.batch_size, recipe.batch_size)
    run = Run(net, recipe.optimizers(net, schedule))

    # Training.
    checkpoint = Checkpoint(place.with_suffix(".pt"), _identity(task, plan, schedule, numbers), plan.checkpoint_s)
    teaching = Teaching(run, recipe, training, strangers, lessons, schedule, plan, numbers, checkpoint)
    _watch(teaching, place)
    checkpoint.restore(run)
    if plan.tensorboard:
        teaching.log = Log(place, teaching.step)
    while run.progress.epoch < epochs and not _stopped(teaching):
        loss = _epoch(teaching)
        # In the numbers of training: in others it would take half as long as the training itself.
        with precision.autocast(plan.device, numbers):
            held = score(net, held_out.images, held_out.labels, plan.device)
        _conclude(teaching, loss, held)
        checkpoint.save(run)
    _finish(teaching, place)
    if recipe.half:
        # What is measured is what is kept.
        record.halve(net)

    # Evaluation.
    test = task.images("test")
    result = score(net, test.images, test.labels, plan.device)
    print(f"test {result}  ({run.progress.seconds / 60:.1f} minutes of training)")
    record.write(kept, net, _record(task, teaching, command, result), half=recipe.half)


def _epoch(teaching: Teaching) -> float:
    """One pass over the training set, or what is left of it; the incomplete last batch is left out.

    Returns the mean loss of the batches.
    """
    run, schedule, progress = teaching.run, teaching.schedule, teaching.run.progress
    order = _order(teaching)
    shown = teaching.lessons.of(progress.epoch) if teaching.lessons else None
    run.net.train()
    bar = tqdm(
        desc=f"epoch {progress.epoch + 1}/{schedule.epochs}",
        initial=teaching.step,
        total=schedule.total_steps,
        postfix=_figures(teaching),
        # A file of progress bars helps nobody; the line of each epoch goes there too.
        disable=None,
        leave=False,
    )
    with bar:
        while progress.step < schedule.steps_per_epoch:
            started = time.perf_counter()
            chosen = order[progress.step * schedule.batch_size :][: schedule.batch_size]
            loss = _step(teaching, chosen, shown)
            progress.step, progress.loss = progress.step + 1, progress.loss + loss
            progress.losses.append(loss)
            progress.seconds += time.perf_counter() - started
            bar.set_postfix(_figures(teaching), refresh=False)
            bar.update()
            if teaching.checkpoint.due:
                teaching.checkpoint.save(run)
    return progress.loss / schedule.steps_per_epoch


def _order(teaching: Teaching) -> Tensor:
    """Of the images, in this epoch. Drawn from the seed and the epoch's number alone, as is all of its randomness."""
    run, progress = teaching.run, teaching.run.progress
    generator = torch.Generator().manual_seed(teaching.plan.seed * 100_003 + progress.epoch)
    order = torch.randperm(len(teaching.training.images), generator=generator)
    if progress.step == 0:
        run.generator.set_state(generator.get_state())
    return order


def _step(teaching: Teaching, chosen: Tensor, shown: Shown | None) -> float:
    """Train on the images with these indices, and strangers. Returns the mean loss of the images before."""
    run, recipe, device = teaching.run, teaching.recipe, teaching.plan.device
    images = _batch(teaching, chosen, shown).to(device).contiguous(memory_format=torch.channels_last)
    with precision.autocast(device, teaching.precision):
        logits = run.net(images).float()
    known, strange = logits[: len(chosen)], logits[len(chosen) :]
    labels = teaching.training.labels[chosen].to(device)
    loss = nn.functional.cross_entropy(known, labels, label_smoothing=recipe.label_smoothing)
    if recipe.teacher and shown:
        teacher, answers = recipe.teacher, shown.answers[chosen].to(device)
        loss = torch.lerp(loss, distillation.divergence(known, answers, teacher.temperature), teacher.weight)
    of_images = loss.item()
    if recipe.strangers:
        loss = loss - recipe.strangers.weight * nn.functional.log_softmax(strange, 1).mean()
    run.net.zero_grad(set_to_none=True)
    loss.backward()
    if teaching.log:
        teaching.log.batch(teaching.step, of_images, _rates(run))
    for optimizer, rate in run.stepped:
        optimizer.step()
        rate.step()
    return of_images


def _batch(teaching: Teaching, chosen: Tensor, shown: Shown | None) -> Tensor:
    """The images with these indices and then as many strangers as the recipe invites, augmented."""
    recipe, invitation, strangers = teaching.recipe, teaching.recipe.strangers, teaching.strangers
    epoch, generator = teaching.run.progress.epoch, teaching.run.generator
    if shown:
        images = shown.images[chosen]
    else:
        images = recipe.augment(teaching.training.images[chosen], epoch, chosen, generator)
    if invitation is None or strangers is None:
        return images
    invited = torch.randint(len(strangers), (invitation.per_batch,), generator=generator)
    return torch.cat((images, invitation.augment(strangers[invited], epoch, invited, generator)))


def _rates(run: Run) -> list[float]:
    return [float(group["lr"]) for optimizer, _ in run.stepped for group in optimizer.param_groups]


def _figures(teaching: Teaching) -> dict[str, str]:
    """For the progress bar: the mean loss of this epoch, and what held-out images said of the one before."""
    progress = teaching.run.progress
    figures = {"loss": f"{progress.loss / progress.step:.3f}"} if progress.step else {}
    return figures | ({"accuracy": f"{progress.history[-1]['accuracy']:.4f}"} if progress.history else {})


def _conclude(teaching: Teaching, loss: float, held: Score) -> None:
    """Of an epoch: note its figures, keep its weights if they are the best, and tell."""
    run, progress, epochs = teaching.run, teaching.run.progress, teaching.schedule.epochs
    progress.history.append({"loss": loss, "accuracy": held.accuracy, "nll": held.nll})
    progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
    if teaching.plan.patience and best_epoch(progress.history) == progress.epoch:
        run.keep_best()
    left = progress.seconds / progress.epoch * (epochs - progress.epoch)
    tqdm.write(f"epoch {progress.epoch}/{epochs}  loss {loss:.4f}  held-out {held}  {left / 60:.1f} minutes left")
    if teaching.log:
        teaching.log.epoch(teaching.step - 1, progress)


def _stopped(teaching: Teaching) -> bool:
    patience = teaching.plan.patience
    return patience is not None and exhausted(teaching.run.progress.history, patience)


def _watch(teaching: Teaching, place: Path) -> None:
    """What is to be drawn is drawn, or collected for it."""
    if teaching.plan.plot:
        schedule = teaching.schedule
        # Building another network draws numbers, too.
        with torch.random.fork_rng():
            spare = teaching.recipe.optimizers(teaching.recipe.build(), schedule)
        curves.schedule(spare, schedule.total_steps, place / "schedule.png")
        teaching.run.activations = Activations(teaching.run.net, every=max(1, schedule.total_steps // LOOKS))


def _finish(teaching: Teaching, place: Path) -> None:
    """The weights to be kept are in the network, the pictures drawn and the log closed."""
    run = teaching.run
    if run.best is not None:
        run.net.load_state_dict(run.best)
        print(f"the weights are those of epoch {best_epoch(run.progress.history)}")
    if run.activations:
        run.activations.remove()
        curves.losses(run.progress, place / "losses.png")
        if run.activations.layers:
            curves.statistics(run.activations, place / "activations.png")
            curves.histograms(run.activations, place / "histograms.png")
        else:
            print(f"no activations were looked at: the run was over; delete {place.with_suffix('.pt')} to train again")
    if teaching.log:
        teaching.log.close()


def _identity(task: Task, plan: Plan, schedule: Schedule, numbers: Precision) -> dict[str, Any]:
    return {
        "network": task.name,
        "seed": plan.seed,
        "epochs": schedule.epochs,
        "images in a batch": schedule.batch_size,
        "patience": plan.patience,
        "precision": numbers,
        "images": task.digests,
        **({"terms": list(task.terms)} if task.terms else {}),
    }


def _record(task: Task, teaching: Teaching, command: list[str], result: Score) -> dict[str, Any]:
    plan, progress = teaching.plan, teaching.run.progress
    given = [*command, "--seed", str(plan.seed), "--epochs", str(teaching.schedule.epochs)]
    seconds = progress.seconds
    from_others: dict[str, Any] = {}
    if ancestor := teaching.recipe.ancestor:
        from_others["ancestor"] = ancestor.name
    if lessons := teaching.lessons:
        seconds += lessons.seconds
        from_others["teacher"] = vars(lessons.teacher)
    stopping: dict[str, Any] = {}
    if plan.patience:
        given += ["--patience", str(plan.patience)]
        stopping = {"early_stopping": {"patience": plan.patience, "epoch": best_epoch(progress.history)}}
    if plan.precision != "auto":
        given += ["--precision", plan.precision]
    return {
        "command": shlex.join(given),
        "dataset": task.dataset,
        "splits": task.digests,
        "seed": plan.seed,
        "epochs": teaching.schedule.epochs,
        **stopping,
        **from_others,
        "precision": teaching.precision,
        "minutes": round(seconds / 60, 1),
        "hardware": record.hardware(plan.device),
        "versions": record.versions(),
        "test": record.figures(result),
        "history": progress.history,
    }
