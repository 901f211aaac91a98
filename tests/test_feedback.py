"""service.feedback: labels reach the answers they are for, over a real socket, whatever fails meanwhile."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest

from service.audit import calibration_id
from service.bundle import digest, discover
from service.keys import main as keys
from service.settings import BUNDLES
from service.stores import read
from tests.conftest import ROOT, Server, environment, fixtures, free_port, serving
from tests.postgres import PASSWORD, Database, database

pytestmark = pytest.mark.slow

IMAGES = fixtures("digits")
TWO = {"TRUEODDS_WORKERS": "2"}
# Of the ids that a worker gives, what is its own.
PREFIX = 20
UNKNOWN = {"request_id": "unknown", "label": "7", "sampling": "random"}


class Client:
    """Somebody on a kept connection, hence at one worker."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.worker = self.http.get("/readyz").headers["x-request-id"][:PREFIX]

    def classify(self, number: int = 0, **headers: str) -> dict[str, Any]:
        named = {"content-type": "image/png"} | {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.http.post("/v1/models/digits/classify", content=IMAGES[number][0], headers=named)
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        return found

    def tell(self, request_id: str, label: str = "7", sampling: str = "random", **more: Any) -> httpx.Response:
        document = {"request_id": request_id, "label": label, "sampling": sampling, **more}
        return self.http.post("/v1/feedback", json=document)

    def drift(self) -> dict[str, Any]:
        # What is told is a second old at most.
        time.sleep(1.05)
        found: dict[str, Any] = self.http.get("/v1/models/digits/drift").raise_for_status().json()
        return found

    def gauges(self) -> dict[str, float]:
        lines = self.http.get("/metrics").text.splitlines()
        found = (re.fullmatch(r"(trueodds_(?:drift|feedback)_\S+) (\S+)", line) for line in lines)
        return {each[1]: float(each[2]) for each in found if each}


@contextmanager
def at_two_workers(server: Server) -> Iterator[tuple[Client, Client]]:
    with ExitStack() as stack:
        found: dict[str, Client] = {}
        until = time.monotonic() + 20
        while len(found) < 2:
            assert time.monotonic() < until
            client = Client(server.url)
            stack.callback(client.http.close)
            found.setdefault(client.worker, client)
        first, second = found.values()
        yield first, second


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home, TWO) as running:
        yield running


@pytest.fixture
def two(server: Server) -> Iterator[tuple[Client, Client]]:
    with at_two_workers(server) as found:
        yield found


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_label_is_taken_by_a_worker_that_did_not_answer(two: tuple[Client, Client], home: Path) -> None:
    """And kept with what the other one answered."""
    one, other = two
    answer = one.classify(3)
    label = answer["predictions"][0]["label"]
    told = other.tell(answer["request_id"], label)
    assert told.headers["x-request-id"][:PREFIX] != answer["request_id"][:PREFIX]
    assert told.status_code == 201
    assert told.json() == {
        "request_id": answer["request_id"],
        "index": 0,
        "label": label,
        "sampling": "random",
        "model": "digits",
        "calibration": answer["calibration"]["id"],
        "recorded": "now",
    }
    logits = read(f"sqlite://{home / 'feedback.sqlite3'}", "digits").logits[-1]
    again = one.http.post("/v1/models/digits/classify?logits=true", content=IMAGES[3][0]).json()["logits"]
    assert logits.tolist() == pytest.approx(again, abs=1e-4)


def test_the_first_label_stays(two: tuple[Client, Client]) -> None:
    """The same again is 200, another label or sampling 409, whoever is asked."""
    one, other = two
    request_id = one.classify()["request_id"]
    assert one.tell(request_id).status_code == 201
    for client in two:
        same = client.tell(request_id)
        assert (same.status_code, same.json()["recorded"]) == (200, "before")
        for changed in (client.tell(request_id, "3"), client.tell(request_id, "7", "selected")):
            assert changed.status_code == 409
            assert "labelled '7', random, before, and that stays" in changed.json()["detail"]
    assert other.tell(request_id).status_code == 200


def test_every_way_of_asking_is_remembered(two: tuple[Client, Client]) -> None:
    """The usual and the direct one, a form, a tensor, the compact answer, and a client's own id."""
    one, other = two
    ids = [one.classify(number)["request_id"] for number in range(5)]
    assert all(other.tell(request_id, IMAGES[number][1]).status_code == 201 for number, request_id in enumerate(ids))
    files = [("file", (str(number), content)) for number, content in enumerate((IMAGES[0][0], b"none", IMAGES[2][0]))]
    form = one.http.post("/v1/models/digits/classify", files=files).headers["x-request-id"]
    statuses = [other.tell(form, IMAGES[number][1], index=number).status_code for number in range(4)]
    assert statuses == [201, 404, 201, 404]
    shape = {"content-type": "application/octet-stream", "x-tensor-shape": "2,32,32"}
    compact = shape | {"accept": "application/vnd.trueodds.predictions", "x-request-id": "own.id"}
    path = "/v1/models/digits/classify"
    tensor = one.http.post(path, content=bytes(2 * 32 * 32), headers=shape).headers["x-request-id"]
    assert one.http.post(path, content=bytes(2 * 32 * 32), headers=compact).status_code == 200
    for request_id in (tensor, "own.id"):
        assert [other.tell(request_id, "1", "selected", index=number).status_code for number in range(3)] == [
            201,
            201,
            404,
        ]


def test_what_bentomls_client_is_answered_is_remembered(server: Server) -> None:
    """Each image has an id of its own there."""
    with bentoml.SyncHTTPClient(server.url) as client:
        several = client.classify_pixels(pixels=np.zeros((2, 28, 28, 3), np.uint8), model="digits")["results"]
    labels = [{"request_id": each["request_id"], "label": "1", "sampling": "selected"} for each in several]
    told = httpx.post(f"{server.url}/v1/feedback", json={"feedback": labels}).json()["results"]
    assert [each["recorded"] for each in told] == ["now"] * 2


def test_of_an_id_sent_twice_the_newer_answer_is_labelled(two: tuple[Client, Client], home: Path) -> None:
    """Whichever worker gave it."""
    one, other = two
    for client, number in ((one, 0), (other, 2), (one, 3)):
        client.classify(number, x_request_id="again")
    newest = other.classify(4, x_request_id="again")["predictions"][0]
    assert one.tell("again", newest["label"]).status_code == 201
    found = read(f"sqlite://{home / 'feedback.sqlite3'}", "digits")
    assert found.logits[-1].argmax() == newest["class_index"]


def test_what_is_wrong_is_told(two: tuple[Client, Client]) -> None:
    """With the remedy."""
    one, _ = two
    request_id = one.classify()["request_id"]
    post = one.http.post
    as_json = {"content-type": "application/json"}
    answers = {
        404: one.tell("unknown"),
        422: one.tell(request_id, "seven"),
        400: post("/v1/feedback", content=b"{", headers=as_json),
        415: post("/v1/feedback", content=json.dumps(UNKNOWN)),
        413: post("/v1/feedback", content=b" " * 300_000, headers=as_json),
        405: one.http.get("/v1/feedback"),
    }
    assert {status: answer.status_code for status, answer in answers.items()} == {status: status for status in answers}
    assert "the last 65,536 of each calibrated model" in answers[404].json()["detail"]
    assert "there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in answers[422].json()["detail"]
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers.values())
    encoded = post("/v1/feedback", content=b"{}", headers=as_json | {"content-encoding": "gzip"})
    assert encoded.status_code == 415
    assert one.http.post("/v1/models/digits/drift").status_code == 405
    assert one.http.get("/v1/models/none/drift").status_code == 404
    # Nothing of that was recorded.
    assert one.tell(request_id).status_code == 201


def test_a_list_is_answered_item_by_item(two: tuple[Client, Client]) -> None:
    """In order, each as if it came alone; a thousand of them at once."""
    one, other = two
    ids = [one.classify(number)["request_id"] for number in range(3)]
    items = [
        {"request_id": ids[0], "label": "7", "sampling": "random"},
        {"request_id": ids[0], "label": "7", "sampling": "random"},
        {"request_id": ids[0], "label": "8", "sampling": "random"},
        {"request_id": ids[1], "label": "two", "sampling": "random"},
        {"request_id": ids[1], "label": "2"},
        UNKNOWN,
        {"request_id": ids[2], "label": "1", "sampling": "selected"},
    ]
    response = other.http.post("/v1/feedback", json={"feedback": items})
    results = response.json()["results"]
    assert response.status_code == 200
    told = [result.get("recorded") or result["error"]["status"] for result in results]
    assert told == ["now", "before", 409, 422, 422, 404, "now"]
    many = [{"request_id": f"many{number}", "label": "7", "sampling": "random"} for number in range(1000)]
    for number in range(0, 1000, 50):
        one.classify(0, x_request_id=f"many{number}")
    results = other.http.post("/v1/feedback", json={"feedback": many}).json()["results"]
    assert [number for number, result in enumerate(results) if "recorded" in result] == list(range(0, 1000, 50))


def test_report_and_gauges_are_the_same_everywhere(two: tuple[Client, Client]) -> None:
    """What every worker has taken counts with all of them."""
    one, other = two
    before = one.drift()
    for number, client in enumerate((one, other, one, other)):
        client.tell(client.classify(number)["request_id"], IMAGES[number][1], "random" if number else "selected")
    told = one.drift()
    assert told == other.drift()
    assert told["labels"]["counted"] == before["labels"]["counted"] + 3
    assert told["labels"]["selected"] == before["labels"]["selected"] + 1
    assert told["calibration"] == one.classify()["calibration"]["id"]
    time.sleep(1.05)
    first, second = one.gauges(), other.gauges()
    assert first == second
    assert first["trueodds_feedback_up"] == 1
    assert first['trueodds_feedback_labels{model="digits",use="counted"}'] == told["labels"]["counted"]
    assert first['trueodds_drift_z{model="digits"}'] == pytest.approx(told["spiegelhalter"]["z"])
    served = [model["name"] for model in one.http.get("/v1/models").json()["models"]]
    assert [first[f'trueodds_drift_alarm{{model="{name}"}}'] for name in served] == [0] * len(served)
    assert first['trueodds_feedback_accuracy{kind="observed",model="digits"}'] == told["accuracy"]["observed"]
    assert first['trueodds_feedback_coverage{kind="promised",model="digits"}'] == 0.95


def test_broken_promises_raise_an_alarm(two: tuple[Client, Client]) -> None:
    """A model that is always sure and now always wrong, by labels that are told so; it is told in every worker."""
    one, other = two
    wrong = []
    for number in range(12):
        answer = one.classify(number)
        best = answer["predictions"][0]["class_index"]
        if not answer["ood"]["is_ood"]:
            label = str((best + 1) % 10)
            wrong.append({"request_id": answer["request_id"], "label": label, "sampling": "random"})
    other.http.post("/v1/feedback", json={"feedback": wrong}).raise_for_status()
    for client in two:
        told = client.drift()
        assert told["alarm"]
        assert told["advice"].startswith("The promise is broken: the model is too sure of itself")
        assert client.gauges()['trueodds_drift_alarm{model="digits"}'] == 1


def test_the_examples_of_the_documents_run(server: Server) -> None:
    """As they are copied, but for the port."""
    text = (ROOT / "docs" / "feedback.md").read_text().replace("http://localhost:3000", server.url)
    shell, *_ = re.findall(r"```sh\n(.*?)```", text, re.S)
    examples = [["bash", "-euc", shell.replace("localhost:3000", server.url)]]
    programs = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(programs) == 2
    examples += [[sys.executable, "-c", program] for program in programs]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = environment(server.log.parent, {}) | {"PATH": path}
    outputs = [
        subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True, timeout=120).stdout
        for command in examples
    ]
    assert '"recorded":"now"' in outputs[0]
    assert "'recorded': 'now'" in outputs[1]
    assert re.match(r"\(\d+, 10\) \[", outputs[2])


def test_the_report_in_the_documents_has_the_members_of_the_true_one(two: tuple[Client, Client]) -> None:
    """And no others."""
    shown = json.loads(re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "feedback.md").read_text(), re.S)[0])
    given = two[0].drift()
    assert shown.keys() == given.keys()
    for name, value in shown.items():
        if isinstance(value, dict):
            assert value.keys() == given[name].keys()


def test_what_was_said_to_be_recorded_outlasts_its_worker(tmp_path: Path) -> None:
    """Killed right after 201; and what it had answered is found by its successor and by the others."""
    with serving(tmp_path, TWO) as server:
        with at_two_workers(server) as (one, other):
            answered = [one.classify(number)["request_id"] for number in range(3)]
            assert one.tell(answered[0]).status_code == 201
            kill_worker_of(one, server)
            assert other.tell(answered[0]).status_code == 200
            assert other.tell(answered[1], IMAGES[1][1]).status_code == 201
        wait_until(lambda: len(children(server.pid)) == 2)
        with at_two_workers(server) as clients:
            assert one.worker not in {client.worker for client in clients}
            statuses = [client.tell(answered[2], IMAGES[2][1]).status_code for client in clients]
            assert statuses == [201, 200]
            assert clients[0].drift()["labels"]["counted"] == 3


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def kill_worker_of(client: Client, server: Server) -> None:
    """By its connection, which the system knows."""
    network = client.http._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
    port = network.get_extra_info("socket").getsockname()[1]
    for pid in children(server.pid):
        inodes = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            found = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            inodes |= {found[1]} if found else set()
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            _, _, remote, _, _, _, _, _, _, inode, *_ = line.split()
            if int(remote.rpartition(":")[2], 16) == port and inode in inodes:
                os.kill(pid, signal.SIGKILL)
                return
    pytest.fail("no worker has this connection")


def recalibrated(served: Path) -> None:
    """A newer version of a bundle, under another calibration id."""
    directory = served.parent / "1000"
    shutil.copytree(served, directory)
    path = directory / "calibration.json"
    document = json.loads(path.read_text())
    document["created_by"]["note"] = "another"
    path.write_text(json.dumps(document | {"id": calibration_id(document)}))
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["version"] = "1000"
    manifest["files"]["calibration.json"] = digest(path)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_label_counts_for_the_calibration_of_its_answer(tmp_path: Path) -> None:
    """Not for the one that has taken its place meanwhile, by SIGHUP."""
    bundles = tmp_path / "bundles"
    newest = discover(BUNDLES, ("digits",))["digits"].directory
    served = bundles / "digits" / newest.name
    shutil.copytree(newest, served)
    settings = {**TWO, "TRUEODDS_BUNDLES": str(bundles)}
    with serving(tmp_path / "home", settings) as server:
        with at_two_workers(server) as (one, _):
            old = [one.classify(number) for number in range(3)]
            one.tell(old[0]["request_id"]).raise_for_status()
        recalibrated(served)
        workers = set(children(server.pid))
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: len(children(server.pid)) == 2 and not workers & set(children(server.pid)))
        with at_two_workers(server) as (one, other):
            new = [one.classify(number) for number in range(2)]
            assert [answer["model"]["version"] for answer in (old[0], new[0])] == [newest.name, "1000"]
            assert new[0]["calibration"]["id"] != old[0]["calibration"]["id"]
            for answer, number in ((old[1], 1), (old[2], 2), (new[0], 0)):
                told = other.tell(answer["request_id"], IMAGES[number][1])
                assert (told.status_code, told.json()["calibration"]) == (201, answer["calibration"]["id"])
            assert other.tell(old[0]["request_id"]).status_code == 200
            drift = one.drift()
            assert drift["calibration"] == new[0]["calibration"]["id"]
            assert (drift["labels"]["counted"], drift["labels"]["other_calibrations"]) == (1, 3)


def test_what_is_forgotten_is_told(tmp_path: Path) -> None:
    """With how much is remembered; a label that was recorded before that is still known."""
    with serving(tmp_path, {"TRUEODDS_WORKERS": "1", "TRUEODDS_FEEDBACK_REMEMBERS": "3"}) as server:
        client = Client(server.url)
        ids = [client.classify()["request_id"] for _ in range(4)]
        assert client.tell(ids[1]).status_code == 201
        ids.append(client.classify()["request_id"])
        statuses = [client.tell(request_id).status_code for request_id in ids]
        assert statuses == [404, 200, 201, 201, 201]
        assert client.tell(ids[1], "3").status_code == 409
        assert "the last 3 of each calibrated model" in client.tell(ids[0]).json()["detail"]
        client.http.close()


@pytest.mark.parametrize("settings", [{"TRUEODDS_FEEDBACK": "off"}, {"TRUEODDS_FEEDBACK_REMEMBERS": "0"}], ids=str)
def test_feedback_can_be_turned_off(settings: dict[str, str], tmp_path: Path) -> None:
    """Then there is nothing to be asked, and nothing is written."""
    with serving(tmp_path, {"TRUEODDS_WORKERS": "1", "TRUEODDS_MODELS": "digits", **settings}) as server:
        client = Client(server.url)
        request_id = client.classify()["request_id"]
        assert client.tell(request_id).status_code == 404
        assert client.http.get("/v1/models/digits/drift").status_code == 404
        assert client.gauges() == {}
        client.http.close()
    assert not (tmp_path / "feedback.sqlite3").exists()


def test_a_store_that_cannot_be_used_keeps_nobody_from_classifying(tmp_path: Path) -> None:
    """The service starts, and each worker warns once."""
    (tmp_path / "file").touch()
    given = {**TWO, "TRUEODDS_FEEDBACK": f"sqlite://{tmp_path / 'file' / 'x.sqlite3'}"}
    with serving(tmp_path / "home", given) as server:
        with at_two_workers(server) as clients:
            for client in clients * 2:
                told = client.tell(client.classify()["request_id"])
                assert (told.status_code, told.headers["retry-after"]) == (503, "1")
                assert client.http.get("/v1/models/digits/drift").status_code == 503
                assert client.gauges() == {"trueodds_feedback_up": 0}
        assert server.log.read_text().count("labels cannot be recorded") == 2


def test_a_full_disk_costs_no_classification(tmp_path: Path) -> None:
    """503 until there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode:
        pytest.skip("a small disk needs root and permission to mount")
    try:
        given = {**TWO, "TRUEODDS_FEEDBACK": f"sqlite://{disk / 'labels.sqlite3'}"}
        with serving(tmp_path / "home", given) as server, at_two_workers(server) as clients:
            one, other = clients
            first = one.classify()["request_id"]
            assert one.tell(first).status_code == 201
            with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            # What SQLite has of its files by then it may still use.
            statuses: list[int] = []
            while statuses[-1:] != [503]:
                assert len(statuses) < 2000
                statuses.append(other.tell(other.classify()["request_id"]).status_code)
            assert set(statuses) <= {201, 503}
            (disk / "filler").unlink()
            second = one.classify()["request_id"]
            wait_until(lambda: one.tell(second).status_code in (200, 201))
            assert one.tell(first).status_code == 200
            wait_until(lambda: one.http.get("/v1/models/digits/drift").status_code == 200)
            assert one.drift()["labels"]["counted"] == statuses.count(201) + 2
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with database() as found:
        yield found


def test_a_database_that_stops_costs_no_classification(tmp_path: Path, postgres: Database) -> None:
    """503 until it is there again; nothing recorded is lost, nothing is doubled, and the log keeps its password."""
    given = {**TWO, "TRUEODDS_FEEDBACK": postgres.url, "TRUEODDS_ACCESS_LOG_SAMPLE": "1"}
    with serving(tmp_path, given) as server, at_two_workers(server) as (one, other):
        ids = [one.classify(number)["request_id"] for number in range(4)]
        assert other.tell(ids[0]).status_code == 201
        postgres.stop()
        for client in (one, other):
            told = client.tell(ids[1], IMAGES[1][1])
            assert (told.status_code, "retry-after" in told.headers) == (503, True)
            client.classify()
        time.sleep(1.05)
        assert one.gauges() == {"trueodds_feedback_up": 0}
        postgres.start()
        wait_until(lambda: one.tell(ids[1], IMAGES[1][1]).status_code in (200, 201))
        wait_until(lambda: other.tell(ids[2], IMAGES[2][1]).status_code == 201)
        assert one.tell(ids[0]).status_code == 200
        wait_until(lambda: one.http.get("/v1/models/digits/drift").status_code == 200)
        assert one.drift()["labels"]["counted"] == 3
    assert len(read(postgres.url, "digits").labels) == 3
    assert PASSWORD not in server.log.read_text()
    assert "labels are recorded again" in server.log.read_text()


def test_labels_need_a_scope_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may classify may not label, nor the other way round."""
    file = tmp_path / "keys.json"
    made = {}
    for scope in ("infer", "feedback"):
        assert keys(["--file", str(file), "add", scope, "--scopes", scope]) == 0
        made[scope] = {"x-api-key": capsys.readouterr().out.strip()}
    with serving(tmp_path / "home", {"TRUEODDS_WORKERS": "1", "TRUEODDS_API_KEYS": str(file)}) as server:
        image = {"content-type": "image/png"}
        path = f"{server.url}/v1/models/digits/classify"
        answer = httpx.post(path, content=IMAGES[0][0], headers=made["infer"] | image).json()
        document = {"request_id": answer["request_id"], "label": "7", "sampling": "random"}
        told = {scope: httpx.post(f"{server.url}/v1/feedback", json=document, headers=made[scope]) for scope in made}
        assert {scope: response.status_code for scope, response in told.items()} == {"infer": 403, "feedback": 201}
        drift = f"{server.url}/v1/models/digits/drift"
        assert [httpx.get(drift, headers=made[scope]).status_code for scope in made] == [200, 403]


def test_an_address_of_nothing_keeps_the_service_from_starting(tmp_path: Path) -> None:
    """In one line, which does not repeat what may be a password."""
    given = environment(tmp_path, {"TRUEODDS_FEEDBACK": "mysql://u:s3cret@host/x"})
    command = [sys.executable, "-m", "service", "--port", str(free_port())]
    ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("trueodds: TRUEODDS_FEEDBACK is no address of a store")
    assert len(ended.stderr.splitlines()) == 1
    assert "s3cret" not in ended.stderr
