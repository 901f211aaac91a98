"""Tables and figures as Markdown."""

from collections.abc import Sequence

ABSENT = "–"


class PageError(Exception):
    """A page that has no place for what belongs there; tells what is missing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar or a line break in a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def placed(page: str, subject: str, begin: str, end: str, text: str) -> str:
    """The page with the text between the two lines. Raises PageError."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise PageError(f"there is no place for {subject}: put the lines {begin} and {end} where its figures belong")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def percent(value: float) -> str:
    return f"{value:.3%}"


def fine(value: float) -> str:
    return f"{value:.4f}"


def finest(value: float) -> str:
    return f"{value:.6f}"


def share(value: float) -> str:
    return f"{100 * value:g} %"


def mark(holds: bool) -> str:
    return "yes" if holds else ABSENT


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
