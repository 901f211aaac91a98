"""Train a network of the zoo, `python -m models.train <name>`, or one on images of your own, with `--data`.

Interrupt it at any time; the same command resumes.
A run that was killed, wherever that was, ends in the same weights as an uninterrupted one: on the CPU bit for bit, with
as many threads.
"""

import argparse
import sys
from pathlib import Path

from models import MODELS, RUNS, arguments, own, record_path, weights_path
from models.formats import DataError
from models.own import Wish
from models.task import zoo
from models.teaching import Plan, teach


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(argv)
    _check(parser, given)
    try:
        if given.data is None:
            train(given.name, _plan(given), record_only=given.record_only)
        else:
            train_own(given.name, Wish(given.data, given.start, given.size, not given.no_mirror), _plan(given))
    except DataError as error:
        print(f"models.train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes from {RUNS / given.name}", file=sys.stderr)
        return 130
    return 0


def train(name: str, plan: Plan, *, record_only: bool = False) -> None:
    """Train a network of the zoo and write its weights and a record of the run to models/weights. Raises DataError.

    record_only: the record alone, where `record_path` says.
    """
    command = ["python", "-m", "models.train", name]
    if record_only:
        teach(zoo(name), plan, [*command, "--record-only"], record_path(name, plan.seed))
    else:
        teach(zoo(name), plan, command, weights_path(name))


def train_own(name: str, wish: Wish, plan: Plan) -> None:
    """Train on somebody's own images; the weights and a record of the run go to runs/<name>. Raises DataError."""
    task = own.begin(name, wish)
    # Where the images are is nobody's business but their owner's: the record becomes part of a bundle.
    command = ["python", "-m", "models.train", name, "--data", wish.data.name, *wish.terms]
    teach(task, plan, command, own.weights_of(name))


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Exits with a message where options do not go together."""
    if given.data is None and given.name not in MODELS:
        parser.error(f"{given.name!r} is not one of {', '.join(sorted(MODELS))}; images of your own come with --data")
    if given.data is None and (given.start or given.size != Wish.size or given.no_mirror):
        parser.error("--from, --size and --no-mirror go with --data")
    if given.data is not None and given.record_only:
        parser.error("--record-only is for the zoo, and --data for your own images")


def _plan(given: argparse.Namespace) -> Plan:
    return Plan(
        seed=given.seed,
        epochs=given.epochs,
        device=given.device,
        precision=given.precision,
        patience=given.patience,
        checkpoint_s=given.checkpoint_seconds,
        plot=given.plot,
        tensorboard=given.tensorboard,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("name", help=f"{', '.join(sorted(MODELS))}; with --data what yours is to be called")
    parser.add_argument(
        "--data", type=Path, help="your images: a folder with one for each class, or a CSV of path,label"
    )
    parser.add_argument(
        "--from",
        dest="start",
        choices=sorted(MODELS),
        help="fine-tune this network of the zoo, its last layer first (default: train a small one from scratch)",
    )
    parser.add_argument(
        "--size",
        type=arguments.positive,
        default=Wish.size,
        metavar="PIXELS",
        help="a side of what the network is fed (default: %(default)s)",
    )
    parser.add_argument("--no-mirror", action="store_true", help="a mirror image is of no class, or of another")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.add_argument("--epochs", type=arguments.positive, help="train for longer or shorter than the recipe says")
    parser.add_argument(
        "--record-only",
        action="store_true",
        help="leave the weights there are, and write the record to models/weights/seeds: for mean and spread",
    )
    parser.add_argument(
        "--device", type=arguments.device, default="auto", help="cpu, cuda or cuda:1 (default: a GPU, if there is one)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "float32"),
        default="auto",
        help="bf16 trains under autocast; auto does so where the recipe says so and the hardware has it",
    )
    parser.add_argument(
        "--patience",
        type=arguments.positive,
        metavar="EPOCHS",
        help="stop after so many epochs without a lower held-out NLL, with the weights of the best (default: never)",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=arguments.seconds,
        default=Plan.checkpoint_s,
        metavar="S",
        help="how much of the training a kill may cost (default: %(default)g)",
    )
    parser.add_argument(
        "--plot", action="store_true", help="draw schedule, losses and activations as PNG into the run's folder"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write a log for TensorBoard there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
