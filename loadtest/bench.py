"""`make bench`: the service beside what its own parts could do at best, in one interleaved run. Linux only.

Three contenders take turns: the service; the in-process limit (decoding, inference and encoding in a loop, without
HTTP); and the HTTP floor (the service's own server with nothing behind it). Prints the ratios and writes a history
and a plot.

Exits 0 when all was measured, 1 when requests met errors, 2 when the run could not begin or go on.
"""

import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from loadtest import bodies, contenders, history, plot, processes, tables, wrk
from loadtest.contenders import ContenderFailed, Service
from loadtest.contest import FEW, MANY, Contest
from loadtest.figures import Figures, Spread
from loadtest.plan import Plan, parse
from service.errors import StartupError
from service.settings import Settings, available_cores


def main(argv: Sequence[str] | None = None) -> int:
    plan = parse(argv)
    # Contexts end what was started, on SIGTERM as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(plan)
    except (ContenderFailed, wrk.WrkFailed, StartupError, OSError) as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is written", file=sys.stderr)
        return 130


def run(plan: Plan) -> int:
    """Measure, print and write. Raises ContenderFailed, WrkFailed, StartupError or OSError."""
    if not processes.PROC.joinpath("stat").exists():
        raise ContenderFailed("CPU time and memory are read from /proc, which only Linux has")
    wrk.program()
    plan.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trueodds-bench-") as name, ExitStack() as stack:
        cold_starts: list[float] = []
        service = stack.enter_context(_service(plan, Path(name), cold_starts))
        contest = _contend(plan, service, Path(name), stack)
        contest.prepare()
        contest.measure(lambda line: print(line, file=sys.stderr, flush=True))
        pss_mib = processes.pss_mib(contest.service_pids) or None
    figures = Figures(contest.samples)
    whole = {
        "cold_start_s": Spread.of(cold_starts),
        "peak_rss_mib": Spread.of([figures.peak_rss_mib]),
        "pss_mib": Spread.of([pss_mib]),
    }
    circumstances = history.circumstances(available_cores())
    print(_report(contest, figures, whole, circumstances))
    _write(contest, figures, whole, circumstances)
    return int(figures.errors > 0)


@contextmanager
def _service(plan: Plan, folder: Path, cold_starts: list[float]) -> Iterator[Service]:
    """The service to be measured: another's, or our own, started once for each round and then left running."""
    if plan.url:
        yield Service(plan.url)
        return
    for _ in range(plan.rounds - 1):
        with contenders.service(folder, plan.port) as started:
            cold_starts.append(started.cold_start_s or 0)
    with contenders.service(folder, plan.port) as started:
        cold_starts.append(started.cold_start_s or 0)
        yield started


def _contend(plan: Plan, service: Service, folder: Path, stack: ExitStack) -> Contest:
    """Start the limit and the floor beside the service, each with as many processes as the service has workers."""
    workers = Settings.from_environment().worker_count
    models = _chosen(service, plan.models)
    contest = Contest(
        plan,
        service,
        stack.enter_context(contenders.floor(workers, folder)),
        {model: stack.enter_context(contenders.limit(model, workers, folder)) for model in models},
        folder,
        workers,
    )
    # For wrk's connections; the contenders have started with what people have.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return contest


def _chosen(service: Service, wanted: Sequence[str]) -> list[str]:
    """The models to measure: those wanted, or all that are served and have test images. Raises ContenderFailed."""
    known = [model.name for model in service.models() if bodies.images_of(model.name)]
    unknown = sorted(set(wanted) - set(known))
    if unknown or not known:
        raise ContenderFailed(
            f"{', '.join(unknown) or 'no model'} cannot be measured; served and with test images: {known}"
        )
    return list(dict.fromkeys(wanted)) or known


def _report(contest: Contest, figures: Figures, whole: dict[str, Spread | None], circumstances: dict[str, Any]) -> str:
    hardware = circumstances["hardware"]
    gpus = "".join(f", {gpu}" for gpu in hardware["gpus"])
    lines = [
        "",
        f"{hardware['cores']} cores of {hardware['cpu']}{gpus}; {contest.workers} workers; "
        f"commit {circumstances['commit']}; {contest.plan.rounds} rounds of {contest.plan.seconds} s; "
        "median (lowest–highest)",
    ]
    for model in contest.limits:
        lines += ["", f"{model} (limit at batch {contest.batches[model]}, at c=1 one process at batch 1)"]
        if "single" in contest.plan.parts:
            lines += ["", tables.single(figures, model)]
        if "bulk" in contest.plan.parts:
            lines += ["", tables.bulk(figures, model)]
    if "crowd" in contest.plan.parts:
        lines += ["", tables.crowd(figures, FEW, MANY)]
    lines += [
        "",
        f"cold start {tables.text(whole['cold_start_s'], 's')}",
        f"peak RSS of all processes {tables.text(whole['peak_rss_mib'], 'MiB')}",
        f"PSS at the end {tables.text(whole['pss_mib'], 'MiB')}",
    ]
    if figures.disturbed:
        lines.append(f"{figures.disturbed} of {len(figures.samples)} measurements were disturbed by other processes")
    return "\n".join(lines)


def _write(contest: Contest, figures: Figures, whole: dict[str, Spread | None], circumstances: dict[str, Any]) -> None:
    out = contest.plan.out
    document = circumstances | {
        "rounds": contest.plan.rounds,
        "seconds": contest.plan.seconds,
        "workers": contest.workers,
        "limit_batches": contest.batches,
        **{name: spread and vars(spread) for name, spread in whole.items()},
        "rows": [figures.row(point).document() for point in figures.points("single", *tables.PARTS)],
        "samples": [sample.document() for sample in figures.samples],
    }
    history.append(out / "bench.jsonl", document)
    print(f"history {out / 'bench.jsonl'}")
    if "single" in contest.plan.parts:
        try:
            plot.write(figures, out / "bench.svg")
            print(f"plot {out / 'bench.svg'}")
        except plot.PlotUnavailable as reason:
            print(f"bench: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
