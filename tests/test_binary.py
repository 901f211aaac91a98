"""service.binary: arrays survive the way to a client, and each client gets the form it asks for."""

import contextlib
import inspect
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from service.answers import Answers, Options, Row, constants
from service.binary import MEDIA_TYPE, BinaryAnswers, decode, wanted
from service.bundle import Bundle, load
from service.errors import NotAcceptable, Problem, UndecodableImage
from tests.conftest import ROOT
from tests.test_answers import any_outputs, bundle_with, outputs
from tests.test_bundle import write_bundle

ARRAYS = ["probabilities", "energy", "ood_score", "prediction_set", "is_ood", "abstain", "failed"]
BINARY = MEDIA_TYPE.decode()
FLAWED = UndecodableImage("The image is damaged.")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load(write_bundle(tmp_path, labels=["ant", "bee", "cat", "dog", "owl"]))


def binary(bundle: Bundle) -> BinaryAnswers:
    return BinaryAnswers(bundle, Answers(bundle))


@pytest.mark.slow
@drawn(st.data(), st.integers(1, 12), st.booleans(), st.lists(st.booleans(), max_size=5))
@settings(deadline=None, max_examples=150)
def test_what_is_decoded_is_what_the_graph_answered(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, classes: int, logits: bool, flawed: list[bool]
) -> None:
    """Every array to the last bit, whatever the outputs, each beside its own image, failed files between them."""
    bundle = bundle_with([f"é{k}" for k in range(classes)], tmp_path_factory.getbasetemp() / "binary")
    given = data.draw(any_outputs(classes))
    with np.errstate(invalid="ignore", over="ignore"):
        rows = iter(Answers(bundle).rows(given))
    outcomes: list[Row | Problem] = []
    for flaw in flawed:
        if flaw:
            outcomes.append(FLAWED)
        elif (row := next(rows, None)) is not None:
            outcomes.append(row)
    outcomes += rows
    sound = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Problem)]
    found = decode(binary(bundle).encode(outcomes, Options(1, logits), "id-1"))
    arrays = found["arrays"]
    assert list(arrays) == ARRAYS + ["logits"] * logits
    for name in ("probabilities", "energy", "ood_score", "prediction_set", "is_ood", *["logits"] * logits):
        expected = getattr(given, name)
        np.testing.assert_array_equal(arrays[name][sound], expected.astype(arrays[name].dtype))
    answered = [outcome for outcome in outcomes if not isinstance(outcome, Problem)]
    assert arrays["abstain"][sound].tolist() == [row.abstain for row in answered]
    assert np.flatnonzero(arrays["failed"] == 0).tolist() == sound
    assert (found["n"], found["classes"], found["labels"]) == (len(outcomes), classes, bundle.manifest.labels)


def test_the_header_tells_what_every_answer_has_in_common(bundle: Bundle) -> None:
    """The constants of the JSON answer under the same names, and the request's id."""
    body = binary(bundle).encode(Answers(bundle).rows(outputs()), Options(), "id-1")
    found = decode(body)
    assert {name: found[name] for name in constants(bundle)} == constants(bundle)
    assert found["request_id"] == "id-1"
    assert found["errors"] == {}


def test_sets_of_another_coverage(bundle: Bundle) -> None:
    """Those of the JSON answer, and the header says which."""
    answers = Answers(bundle)
    rows = answers.rows(outputs())
    for coverage in bundle.coverages:
        found = decode(BinaryAnswers(bundle, answers).encode(rows, Options(coverage=coverage), "id-1"))
        assert found["prediction_set"] == {"coverage": coverage, "method": "lac"}
        sets = [list(answers.members(row, coverage)) for row in rows]
        assert found["arrays"]["prediction_set"].tolist() == sets


def test_a_failed_file_offers_no_answer(bundle: Bundle) -> None:
    """Its problem is in the header, its numbers are NaN, its set is empty, and a person should look."""
    outcomes: list[Row | Problem] = [FLAWED, *Answers(bundle).rows(outputs()), FLAWED]
    found = decode(binary(bundle).encode(outcomes, Options(logits=True), "id-1"))
    assert found["errors"] == {"0": FLAWED.document("id-1"), "4": FLAWED.document("id-1")}
    arrays = found["arrays"]
    assert arrays["failed"].tolist() == [1, 0, 0, 0, 1]
    for name in ("probabilities", "energy", "ood_score", "logits"):
        assert np.isnan(arrays[name][[0, 4]]).all()
        assert np.isfinite(arrays[name][1:4]).all()
    assert not arrays["prediction_set"][[0, 4]].any()
    assert arrays["abstain"][[0, 4]].all()
    assert not arrays["is_ood"][[0, 4]].any()


def test_a_request_of_failed_files_only_has_every_array(bundle: Bundle) -> None:
    """The shapes are those of any answer."""
    arrays = decode(binary(bundle).encode([FLAWED] * 3, Options(), "id-1"))["arrays"]
    assert {name: array.shape for name, array in arrays.items()} == {
        name: (3, 5) if name in ("probabilities", "prediction_set") else (3,) for name in ARRAYS
    }


@pytest.mark.parametrize("n", range(1, 10))
def test_arrays_lie_where_any_machine_reads_them_fast(bundle: Bundle, n: int) -> None:
    """Each at a multiple of 8 bytes from the start, little-endian, and nothing after the last but its padding."""
    rows = Answers(bundle).rows(outputs(np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)))
    body = binary(bundle).encode(rows, Options(logits=True), "i" * n)
    arrays = list(decode(body)["arrays"].values())
    assert [array.dtype.str for array in arrays] == ["<f4", "<f4", "<f4", "|u1", "|u1", "|u1", "|u1", "<f4"]
    at = 8 + int.from_bytes(body[4:8], "little")
    whole = np.frombuffer(body, np.uint8)
    for array in arrays:
        assert at % 8 == 0
        assert array.ctypes.data - whole.ctypes.data == at
        at += array.nbytes + -array.nbytes % 8
    assert len(body) == at


def test_the_documents_show_this_reader_and_every_array() -> None:
    """docs/api.md has the reader word for word, the type's name and each array's."""
    text = (ROOT / "docs/api.md").read_text()
    assert inspect.getsource(decode) in text
    assert f"`Accept: {BINARY}`" in text
    assert re.findall(r"^\| `(\w+)` \| `", text, re.MULTILINE) == [*ARRAYS, "logits"]


def test_another_body_is_not_decoded() -> None:
    """JSON taken for this type is told by its first bytes."""
    with pytest.raises(ValueError, match="no answer of type"):
        decode(b'{"results":[]}')


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", "application/json", "application/*", "APPLICATION/JSON", "application/json; charset=utf-8"),
        *("application/json, text/plain, */*", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        *(f"{BINARY}, application/json", f"application/json, {BINARY}", f"{BINARY};q=0.5, application/json"),
        *(f"{BINARY};q=0, */*", f"*/*, {BINARY};q=0.9", f"{BINARY};q=0.5, application/*;q=0.6", f"{BINARY};Q=0, */*"),
        *("text/html, */*;q=0.001", f'text/x;a=", {BINARY}", */*', f'{BINARY};x=";q=1";q=0.3, application/json;q=0.4'),
        *("rubbish", ",", ";", "/", "a/b/c", '"', "application/json;q=2", f"{BINARY};q=x", f"{BINARY};q=0.1234", "é"),
    ],
)
def test_json_is_for_whoever_does_not_prefer_the_other(accept: str) -> None:
    """No header, wildcards, ties between named types and headers nobody can read."""
    assert not wanted(accept.encode())


@pytest.mark.parametrize(
    "accept",
    [
        *(BINARY, BINARY.upper(), f" {BINARY} ", f"{BINARY};v=1", f"{BINARY}, */*", f"*/*, {BINARY}"),
        *(f"application/json;q=0.9, {BINARY}", f"{BINARY};q=0.2, application/json;q=0.1, */*", f"{BINARY};q=0.001"),
        *("application/json;q=0, application/*", "application/*, application/json;q=0.5", f",, {BINARY} ,"),
        *(f"{BINARY};q=0.5, */*;q=0.5", f"{BINARY} ; q=1.000", f"{BINARY};;q=1", f"rubbish, {BINARY}"),
    ],
)
def test_the_binary_form_is_for_whoever_prefers_it(accept: str) -> None:
    """Named alone, of greater weight, or named where JSON is only let in by a wildcard."""
    assert wanted(accept.encode())


@pytest.mark.parametrize(
    "accept",
    [
        *("text/html", "image/*", "*/*;q=0", "application/json;q=0", "application/*;q=0, */*", "application/xml;q=0.5"),
        *(
            f"application/json;q=0.0, {BINARY};q=0.000",
            f"application/json;q=0, {BINARY};q=0, */*",
            "text/html, rubbish",
        ),
    ],
)
def test_whoever_accepts_neither_is_told_both(accept: str) -> None:
    """406, with the types there are."""
    with pytest.raises(NotAcceptable, match=f"application/json and {BINARY}") as refusal:
        wanted(accept.encode())
    assert refusal.value.status == 406


@drawn(
    st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from(
                [
                    MEDIA_TYPE,
                    b"application/json",
                    b"*/*",
                    b"application/*",
                    b"text/html",
                    b";",
                    b"q=",
                    b"0",
                    b"1",
                    b".5",
                    b",",
                    b" ",
                    b'"',
                    b"\\",
                    b"=",
                    b"\xff",
                    b"\n",
                ]
            )
        ).map(b"".join),
    )
)
@settings(deadline=None, max_examples=300)
def test_no_header_is_more_than_not_acceptable(accept: bytes) -> None:
    """Random headers choose a form or are a 406."""
    with contextlib.suppress(NotAcceptable):
        assert wanted(accept) in (True, False)


@pytest.mark.parametrize(
    "piece", [b'"', b"a", b" ", b";", b"; ", b",", b"a/b;", b"\\", b'"\\"', b"a=", b";a=b ", b"a/b, "]
)
def test_a_hostile_header_takes_no_time(piece: bytes) -> None:
    """64 KiB of anything, ended in what spoils it, is read in a blink."""
    started = time.perf_counter()
    for accept in (piece * (65536 // len(piece)) + b"\x00", b"a/b" + piece * (65536 // len(piece)) + b"\x00"):
        with contextlib.suppress(NotAcceptable):
            wanted(accept)
    assert time.perf_counter() - started < 1
