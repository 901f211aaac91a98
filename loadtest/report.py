"""What a run came to: a table for the terminal, locust's HTML report for the browser."""

from pathlib import Path

from locust.env import Environment
from locust.html import get_html_report
from locust.stats import StatsEntry

from loadtest.answers import Tally

HEAD = ("", "requests", "failures", "req/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms")
PERCENTILES = (0.5, 0.95, 0.99, 0.999)
MOST_FAILURES = 10


def summary(environment: Environment, tally: Tally) -> str:
    """The table, the accuracies and the most frequent failures, as lines of text."""
    entries = sorted(environment.stats.entries.values(), key=lambda entry: entry.name)
    rows = [HEAD, *map(_row, entries), _row(environment.stats.total, "all")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        [
            *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows),
            "",
            *(f"accuracy {model} {share:.4f} over {n:,} answers" for model, (share, n) in tally.accuracies().items()),
            *failures(environment)[:MOST_FAILURES],
        ]
    )


def failures(environment: Environment) -> list[str]:
    """A line for each kind of failure, the most frequent first: wrong answers, crashed users, or no answers at all."""
    assert environment.runner
    stats, crashes = environment.stats, environment.runner.exceptions.values()
    errors = sorted(stats.errors.values(), key=lambda error: -error.occurrences)
    answered = any(entry.num_requests for entry in stats.entries.values() if entry.method == "POST")
    return [
        *([] if answered else ["failed: no image was answered"]),
        *(f"failed {error.occurrences:,} × {error.name}: {error.error}" for error in errors),
        *(f"raised {crash['count']:,} × {crash['msg']}" for crash in crashes),
    ]


def write_html(environment: Environment, path: Path) -> None:
    """Write locust's report, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(_html(environment), encoding="utf-8")
    partial.replace(path)


def _html(environment: Environment) -> str:
    html: str = get_html_report(environment, show_download_link=False)  # type: ignore[no-untyped-call]
    return html


def _row(entry: StatsEntry, name: str = "") -> tuple[str, ...]:
    times = (f"{entry.get_response_time_percentile(percentile):.3g}" for percentile in PERCENTILES)
    return (
        name or entry.name,
        f"{entry.num_requests:,}",
        f"{entry.num_failures:,}",
        f"{entry.total_rps:,.1f}",
        *times,
    )
