"""export.recalibrate: labels of answers become a new version that keeps its promise, or nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from export import recalibrate
from export.gates import CalibrationError
from export.recalibrate import LEAST, SHARES, split
from loadtest.drift import Traffic
from models import weights_path
from service import bundle
from service.bundle import Bundle
from service.calibration import Floats, Labels, expected_calibration_error, softmax
from service.calibrators import probabilities
from service.memory import Origin, Remembered
from service.settings import BUNDLES
from service.stores import Label, LabelledAnswers, Sampling, read, store_at
from tests.conftest import ROOT, fixtures, serving
from tests.draws import draw, exaggerated, honest_logits

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

N = 1200
# What the logits of the stream exaggerate by; the committed calibration knows nothing of it.
EXAGGERATION = 4.0
EASY = ("--risk", "0.6")


def stream(n: int = N, seed: int = 0) -> tuple[Floats, Labels]:
    logits, labels = exaggerated(n, 10, EXAGGERATION, np.random.default_rng(seed))
    return logits.astype(np.float32), labels


def biased(n: int = 3000) -> tuple[Floats, Labels]:
    """Logits that are too high for one class and too low for another: no one number mends that."""
    rng = np.random.default_rng(0)
    honest = honest_logits(n, 10, rng)
    return (honest + np.eye(10)[0] * 3 - np.eye(10)[1] * 3).astype(np.float32), draw(softmax(honest), rng)


def told(
    url: str,
    of: Bundle,
    stream: tuple[Floats, Labels],
    *,
    calibration: str | None = None,
    sampling: Sampling = "random",
    is_ood: bool = False,
    prefix: str = "a",
) -> None:
    """Write what a service would keep of so many labelled answers."""
    origin = Origin.of(of)
    assert origin
    origin = Origin(origin.model, origin.version, origin.sha256, calibration or origin.calibration, origin.labels)
    labels = []
    for i, (row, label) in enumerate(zip(*stream, strict=True)):
        answer = Remembered(
            origin, 1_700_000_000_000_000_000 + i * 10**9, 0.9, int(row.argmax()), row.tobytes(), bytes(10), is_ood
        )
        labels.append(Label(f"{prefix}{i}", 0, origin.labels[label], sampling, answer))
    store = store_at(url)
    store.record(labels, 1_700_000_000.0)
    store.close()


def copied(root: Path) -> Bundle:
    source = bundle.discover(BUNDLES, ("digits",))["digits"].directory
    shutil.copytree(source, root / "bundles" / "digits" / source.name)
    return bundle.discover(root / "bundles")["digits"]


def url_in(root: Path) -> str:
    return f"sqlite://{root / 'labels.sqlite3'}"


def arguments(root: Path, *more: str) -> list[str]:
    return ["digits", "--bundles", str(root / "bundles"), "--feedback", url_in(root), *more]


def versions(root: Path) -> set[str]:
    """Hidden ones included."""
    return {path.name for path in (root / "bundles" / "digits").iterdir()}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def later(version: str, steps: int = 1) -> str:
    return str(int(version) + steps)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle, dict[str, bytes]]:
    """Where a bundle was calibrated anew, what it was before, and its files then."""
    root = tmp_path_factory.mktemp("made")
    served = copied(root)
    before = contents(served.directory)
    told(url_in(root), served, stream())
    # None of these counts.
    told(url_in(root), served, stream(300, 7), calibration="sha256:" + "0" * 64, prefix="b")
    told(url_in(root), served, stream(300, 8), sampling="selected", prefix="c")
    told(url_in(root), served, stream(300, 9), is_ood=True, prefix="d")
    assert recalibrate.main(arguments(root, *EASY)) == 0
    return root, served, before


Made = tuple[Path, Bundle, dict[str, bytes]]


@pytest.mark.slow
def test_a_new_version_keeps_the_promise(made: Made) -> None:
    """On answers that it was not fitted on the calibration error falls; the version is the next, and loads."""
    root, served, _ = made
    found = bundle.discover(root / "bundles")["digits"]
    assert found.directory.name == found.manifest.version == later(served.directory.name)
    logits, labels = stream(5000, 1)

    def error(of: Bundle) -> float:
        assert of.calibration
        p = probabilities(of.calibration.method, logits.astype(np.float64), of.calibration.params)
        return expected_calibration_error(p.max(1), p.argmax(1) == labels)

    assert error(served) > 0.1
    assert error(found) < 0.03
    assert found.calibration
    assert found.calibration.params["temperature"] == pytest.approx(EXAGGERATION, rel=0.15)


@pytest.mark.slow
def test_the_record_tells_of_the_labels(made: Made) -> None:
    """From which calibration, how many and of when; only random ones, in distribution and of that calibration."""
    root, served, _ = made
    found = bundle.discover(root / "bundles")["digits"]
    assert served.calibration
    assert found.manifest.training == served.manifest.training | {
        "recalibrated": {"from": served.calibration.id, "labels": N, "answered": [1.7e9, 1.7e9 + N - 1]}
    }
    assert found.calibration
    sizes = {name: part.n for name, part in found.calibration.data.items()}
    assert sizes == {"fit": 0.4 * N, "conformal": 0.3 * N, "eval": 0.3 * N}
    assert found.calibration.metrics.after.n == sizes["eval"]


@pytest.mark.slow
def test_what_is_strange_stays(made: Made) -> None:
    """And the network does: the same logits for the same pixels."""
    root, served, _ = made
    found = bundle.discover(root / "bundles")["digits"]
    assert served.calibration
    assert found.calibration
    assert found.calibration.ood == served.calibration.ood
    assert found.manifest.labels == served.manifest.labels
    assert found.manifest.input == served.manifest.input
    assert found.calibration.id != served.calibration.id


@pytest.mark.slow
def test_the_version_before_stays_as_it_is(made: Made) -> None:
    """Every byte."""
    _, served, before = made
    assert contents(served.directory) == before


@pytest.mark.slow
def test_coverages_that_so_few_cannot_carry_are_not_offered(made: Made) -> None:
    """360 images for thresholds carry 99 %, not 99.9 %."""
    root, served, _ = made
    assert served.coverages == (0.95, 0.9, 0.99, 0.999)
    assert bundle.discover(root / "bundles")["digits"].coverages == (0.95, 0.9, 0.99)


@pytest.mark.slow
def test_the_same_labels_give_the_same_calibration(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the id, which is of everything in it, the graph's digest too. What is not offered any more is told."""
    served = copied(tmp_path)
    told(url_in(tmp_path), served, stream())
    assert recalibrate.main(arguments(tmp_path, *EASY, "--version", "7.1")) == 0
    output = capsys.readouterr().out
    assert "coverage 0.999 is not offered: that takes 999 labels, not 360" in output
    assert served.calibration
    assert f"ECE on 360 labels kept apart, as served, by {served.calibration.method}: " in output
    one, other = (bundle.discover(root / "bundles")["digits"] for root in (made[0], tmp_path))
    assert other.directory.name == "7.1"
    assert one.calibration
    assert one.calibration == other.calibration


def perturbed(root: Path) -> Path:
    """Weights of the same network, trained otherwise."""
    state = torch.load(weights_path("digits"), weights_only=True)
    # The last layer: what another is scaled by, batch normalisation takes back.
    name = [name for name in state if name.endswith("weight")][-1]
    torch.save(state | {name: state[name] * 1.1}, root / "other.pt")
    (root / "other.json").write_text("{}")
    return root / "other.pt"


def refused(root: Path, capsys: pytest.CaptureFixture[str], reason: str, *more: str, lines: int = 1) -> None:
    """Exit 1, so many lines that give the reason, and nothing that was not there before."""
    before = versions(root)
    capsys.readouterr()
    assert recalibrate.main(arguments(root, *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("recalibrate: ")
    assert reason in error
    assert len(error.splitlines()) == lines
    assert versions(root) == before


def test_too_few_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However many there are of another calibration, or that were selected or out of distribution."""
    served = copied(tmp_path)
    told(url_in(tmp_path), served, stream(LEAST - 1))
    told(url_in(tmp_path), served, stream(300, 7), calibration="sha256:" + "0" * 64, prefix="b")
    told(url_in(tmp_path), served, stream(300, 8), sampling="selected", prefix="c")
    told(url_in(tmp_path), served, stream(300, 9), is_ood=True, prefix="d")
    assert served.calibration
    reason = f"of random answers in distribution under {served.calibration.id} 199 have a label; 200 are needed"
    refused(tmp_path, capsys, reason)


def test_labels_that_fail_the_gates_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both figures are told; the remedy is an option."""
    told(url_in(tmp_path), copied(tmp_path), biased())
    refused(tmp_path, capsys, "fit on more images or opt into vector scaling", *EASY, lines=1)


def test_a_risk_that_so_few_cannot_show_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The promise of the committed model, on labels of a worse stream."""
    told(url_in(tmp_path), copied(tmp_path), stream())
    refused(tmp_path, capsys, "no confidence keeps the risk of a wrong answer at 0.003 on 360 images")


def test_weights_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same kind, trained otherwise; the option that names its own is told."""
    served = copied(tmp_path)
    told(url_in(tmp_path), served, stream())
    weights = perturbed(tmp_path)
    reason = f"the weights are not those of {served.directory}"
    refused(tmp_path, capsys, reason, *EASY, "--weights", str(weights))


def test_a_store_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And is not made."""
    copied(tmp_path)
    refused(tmp_path, capsys, f"there is no {tmp_path / 'labels.sqlite3'}")
    assert not (tmp_path / "labels.sqlite3").exists()
    refused(tmp_path, capsys, "is no address of a store", "--feedback", "off")


def test_a_version_that_exists_or_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A version stays as it is; what is no version would never be served."""
    served = copied(tmp_path)
    told(url_in(tmp_path), served, stream(LEAST))
    refused(tmp_path, capsys, "exists; choose another --version", "--version", served.directory.name)
    for name in ("next", "../3", "1.2.3.4"):
        with pytest.raises(SystemExit):
            recalibrate.main(arguments(tmp_path, "--version", name))
        assert f"{name!r} would never be served; a version is like 1 or 1.2" in capsys.readouterr().err


def test_a_model_without_a_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name; one that nobody knows is no choice at all."""
    copied(tmp_path)
    assert recalibrate.main(["cifar10", *arguments(tmp_path)[1:]]) == 1
    assert "There is no bundle of cifar10" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recalibrate.main(["owls", *arguments(tmp_path)[1:]])
    assert "invalid choice: 'owls'" in capsys.readouterr().err


@pytest.mark.parametrize("risk", ["0", "1", "-0.1", "2", "nan"])
def test_a_risk_that_is_none_is_refused(risk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read."""
    with pytest.raises(SystemExit):
        recalibrate.main(arguments(tmp_path, f"--risk={risk}"))
    assert f"{risk} is no share between 0 and 1" in capsys.readouterr().err


def answers(n: int = 400, calibration: str = "now") -> LabelledAnswers:
    logits, labels = stream(n)
    return LabelledAnswers(logits, labels.astype(np.int64), np.array([calibration] * n), np.arange(n, dtype=float))


def test_labels_are_split_in_three() -> None:
    """Each in one part and none lost; whatever order they came in, an answer falls alike."""
    labelled = answers()
    held = split(labelled, "now")
    parts = list(vars(held).values())
    assert [len(part.labels) for part in parts] == [int(400 * SHARES[0]), int(400 * SHARES[1]), 120]
    rows = {row.tobytes() for part in parts for row in part.logits}
    assert rows == {row.tobytes() for row in labelled.logits}
    order = np.random.default_rng(1).permutation(400)
    moved = LabelledAnswers(*(array[order] for array in vars(labelled).values()))
    assert split(moved, "now").digests() == held.digests()
    assert len(set(held.digests().values())) == 3


def test_another_answer_is_another_split() -> None:
    """Its digest tells of every image in it."""
    labelled = answers()
    moved = LabelledAnswers(labelled.logits, labelled.labels, labelled.calibrations, labelled.answered + 0.5)
    digests = zip(split(labelled, "now").digests().values(), split(moved, "now").digests().values(), strict=True)
    assert all(one != other for one, other in digests)


def test_labels_of_another_calibration_do_not_count() -> None:
    """However many."""
    with pytest.raises(CalibrationError, match=" 0 have a label"):
        split(answers(calibration="before"), "now")


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """While the forms are written; the labels are still there."""
    served = copied(tmp_path)
    told(url_in(tmp_path), served, stream())
    before = versions(tmp_path)
    command = [sys.executable, "-m", "export", "recalibrate", *arguments(tmp_path, *EASY)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while versions(tmp_path) == before:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert versions(tmp_path) == before
    assert len(read(url_in(tmp_path), "digits").labels) == N


@pytest.mark.slow
def test_a_running_service_takes_the_new_version(made: Made, tmp_path: Path) -> None:
    """At SIGHUP, losing no request; from then on answers are of the new calibration, and labels of earlier ones count
    for the old.
    """
    root, served, _ = made
    found = bundle.discover(root / "bundles")["digits"]
    assert served.calibration
    assert found.calibration
    bundles = tmp_path / "bundles"
    (bundles / "digits").mkdir(parents=True)
    shutil.copytree(served.directory, bundles / "digits" / served.directory.name)
    image, label = fixtures("digits")[0]
    with serving(tmp_path / "home", {"TRUEODDS_BUNDLES": str(bundles), "TRUEODDS_WORKERS": "2"}) as server:

        def ask() -> dict[str, str]:
            response = server.post("digits", image)
            assert response.status_code == 200
            answer = response.json()
            return {"request_id": answer["request_id"], "calibration": answer["calibration"]["id"]}

        old = ask()
        assert old["calibration"] == served.calibration.id
        shutil.copytree(found.directory, bundles / "digits" / found.directory.name)
        with Traffic(f"{server.url}/v1/models/digits/classify", [image]) as traffic:
            os.kill(server.pid, signal.SIGHUP)
            seen, until = [old["calibration"]], time.monotonic() + 60
            while seen[-20:] != [found.calibration.id] * 20:
                assert time.monotonic() < until
                seen.append(ask()["calibration"])
        assert traffic.posted > 20
        assert traffic.failed == 0
        assert set(seen) == {served.calibration.id, found.calibration.id}
        new = ask()
        for answer in (old, new):
            item = {"request_id": answer["request_id"], "label": label, "sampling": "random"}
            response = httpx.post(f"{server.url}/v1/feedback", json=item)
            assert (response.status_code, response.json()["calibration"]) == (201, answer["calibration"])
        time.sleep(1.1)
        drift = httpx.get(f"{server.url}/v1/models/digits/drift").json()
        assert drift["calibration"] == found.calibration.id
        assert (drift["labels"]["counted"], drift["labels"]["other_calibrations"]) == (1, 1)
