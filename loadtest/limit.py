"""The in-process limit: images decoded, inferred and answered in a loop, no HTTP. One process: a service's worker.

`python -m loadtest.limit MODEL CACHE` says "ready" when the model is warm. Then for each line "KIND BATCH SECONDS" it
works so long at that batch size and says how many images it did and how many seconds that took. Kinds:

    files     the test images, as PNGs, to JSON
    alone     the same where nobody else needs the cores
    tensor    the test images as .npy, to JSON: nothing to decode
    binary    the same, to a binary answer

Each but `alone` also as `plain-…`: done by the loop of loadtest.plain instead.
"""

import io
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from loadtest.bodies import BULK, images_of
from loadtest.pipeline import Pipeline
from loadtest.plain import PlainLoop

WARM_UP_RUNS = 3

# Does some images in batches of a size, and says how many.
Work = Callable[[int], int]


def main() -> None:
    name, cache = sys.argv[1:]
    pipeline = Pipeline.of(name, Path(cache))
    kinds = kinds_of_work(pipeline, pipeline.plain_loop(), [image.content for image in images_of(name)])
    print("ready", flush=True)
    for line in sys.stdin:
        kind, batch, seconds = line.split()
        done, took = images_within(kinds[kind], int(batch), float(seconds))
        print(done, took, flush=True)


def kinds_of_work(pipeline: Pipeline, plain: PlainLoop, files: list[bytes]) -> dict[str, Work]:
    turn = itertools.cycle(files)
    file = io.BytesIO()
    np.save(file, pipeline.batch(files[:BULK]))
    npy, images = file.getvalue(), len(files[:BULK])
    return {
        "files": lambda batch: len(pipeline.classify(list(itertools.islice(turn, batch)))),
        "alone": lambda batch: len(pipeline.classify(list(itertools.islice(turn, batch)), alone=True)),
        "tensor": lambda batch: len(pipeline.classify_tensor(npy, batch)),
        "binary": lambda batch: images * bool(pipeline.classify_tensor_to_binary(npy, batch)),
        "plain-files": lambda batch: batch * bool(plain.classify(itertools.islice(turn, batch))),
        "plain-tensor": lambda batch: images * bool(plain.classify_tensor(npy, batch)),
        "plain-binary": lambda batch: images * bool(plain.classify_tensor_to_binary(npy, batch)),
    }


def images_within(work: Work, batch: int, seconds: float) -> tuple[int, float]:
    """How many images were answered in batches of this size, and in how many seconds: a little over those given."""
    for _ in range(WARM_UP_RUNS):
        work(batch)
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        done += work(batch)
    return done, took


if __name__ == "__main__":
    main()
