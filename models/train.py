"""Train a network of the zoo: `python -m models.train <name>`. Interrupt it at any time; the same command resumes.

A run that was killed, wherever that was, ends in the same weights as an uninterrupted one: on the CPU bit for bit, with
as many threads.
"""

import argparse
import sys

from models import MODELS, arguments, record_path, weights_path
from models.formats import DataError
from models.task import zoo
from models.teaching import RUNS, Plan, teach


def main(argv: list[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    try:
        train(given.name, _plan(given), record_only=given.record_only)
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


def _plan(given: argparse.Namespace) -> Plan:
    return Plan(
        seed=given.seed,
        epochs=given.epochs or MODELS[given.name].epochs,
        device=given.device,
        precision=given.precision,
        patience=given.patience,
        checkpoint_s=given.checkpoint_seconds,
        plot=given.plot,
        tensorboard=given.tensorboard,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
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
