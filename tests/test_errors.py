"""service.errors: each problem says of itself what the tree in the module's docstring says of it."""

import re
from dataclasses import dataclass
from typing import TypeVar

import pytest

from service import errors
from service.errors import MethodNotAllowed, Problem, StartupError
from service.responses import encode

Error = TypeVar("Error", bound=Exception)

BRANCH = re.compile(r"(?P<indent>[│ ]*)[├└]── (?P<name>\w+) +(?P<note>.+)")


@dataclass(frozen=True)
class Leaf:
    """A line of the docstring's tree."""

    name: str
    parent: str
    note: str


def documented() -> list[Leaf]:
    leaves: list[Leaf] = []
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if line.strip() in {"Problem", "StartupError"}:
            ancestors = [line.strip()]
        elif match := BRANCH.fullmatch(line):
            depth = len(match["indent"]) // 4
            ancestors = [*ancestors[:depth], match["name"]]
            leaves.append(Leaf(match["name"], ancestors[-2], match["note"]))
    return leaves


def descendants(kind: type[Error]) -> set[type[Error]]:
    own = {child for child in kind.__subclasses__() if child.__module__ == errors.__name__}
    return own.union(*(descendants(child) for child in own))


PROBLEMS = sorted(descendants(Problem), key=lambda kind: kind.__name__)


def example(kind: type[Problem]) -> Problem:
    return MethodNotAllowed("PUT", "GET") if kind is MethodNotAllowed else kind("What is wrong; what to do.")


def test_the_tree_names_every_error_and_no_other() -> None:
    """The docstring lists each descendant of Problem and StartupError once."""
    names = [leaf.name for leaf in documented()]
    assert sorted(names) == sorted(kind.__name__ for kind in descendants(Problem) | descendants(StartupError))


@pytest.mark.parametrize("leaf", documented(), ids=lambda leaf: leaf.name)
def test_the_tree_tells_parent_status_and_retry(leaf: Leaf) -> None:
    """A line of the tree stands under the class's parent, with its status and whether it sends Retry-After."""
    kind = getattr(errors, leaf.name)
    assert kind.__bases__ == (getattr(errors, leaf.parent),)
    if issubclass(kind, Problem):
        status, _, promise = leaf.note.partition(", ")
        headers = dict(example(kind).headers)
        assert kind.status == int(status)
        assert (promise == "with Retry-After") == (b"retry-after" in headers)
        assert headers.get(b"retry-after", b"1").isdigit()


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_a_problem_document_has_the_members_of_rfc_9457(kind: type[Problem]) -> None:
    """type, title, status, detail and the request's id, each of its kind, and nothing else."""
    problem = example(kind)
    document = problem.document("abc-1")
    assert document == {
        "type": f"urn:trueodds:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "request_id": "abc-1",
    }
    assert kind.title
    assert problem.detail == str(problem)
    assert 400 <= kind.status < 600
    assert encode(document)


def test_no_two_problems_share_a_slug_or_title() -> None:
    """Clients tell problems apart by `type`."""
    for names in ([kind.slug for kind in PROBLEMS], [kind.title for kind in PROBLEMS]):
        assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.slug) for kind in PROBLEMS)


def test_a_forbidden_method_names_the_allowed_ones() -> None:
    """405 carries the Allow header that RFC 9110 asks for."""
    problem = MethodNotAllowed("DELETE", "POST")
    assert problem.headers == ((b"allow", b"POST"),)
    assert "DELETE" in problem.detail
    assert "POST" in problem.detail
