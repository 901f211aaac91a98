"""service.bundle: only a bundle that is whole and means what it says is served; any other is refused by name."""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service import calibrators, files
from service import seal as seal_module
from service.audit import preprocessing_digest
from service.bundle import discover, load
from service.documents import Precision
from service.errors import BundleError
from service.images import InputSpec
from service.seal import model_file

Json = dict[str, Any]
Edit = Callable[[Json], object]

LABELS = ["cat", "dog", "owl"]
SPEC = InputSpec("photo", 8, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PARAMETERS = {"temperature": 1.5, "prediction_set_threshold": 0.4, "ood_threshold": -3.5}


def network(**parameters: Any) -> bytes:
    """An ONNX file with these weights, which does nothing."""
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in parameters.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "none", ends[:1], ends[1:], weights)
    content: bytes = helper.make_model(graph, ir_version=8).SerializeToString()
    return content


NETWORKS = {"model.onnx": network(**PARAMETERS), "model.torchscript.pt": b"a TorchScript graph"}
FILES = [*NETWORKS, "MODEL_CARD.md", "calibration.json"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def identified(calibration: Json) -> Json:
    """With the id that is the digest of everything else."""
    content = {key: value for key, value in calibration.items() if key != "id"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return content | {"id": "sha256:" + sha256(canonical)}


def figures(**others: float) -> Json:
    errors = dict.fromkeys(("classwise_ece_15", "equal_mass_ece_15", "top_label_ece_15", "smooth_ece"), 0.012)
    murphy = {"reliability": 0.001, "resolution": 0.02, "uncertainty": 0.03, "aurc": 0.004}
    return {"n": 2000, "accuracy": 0.97, "nll": 0.09, "brier": 0.05, "ece_15": 0.011, **errors, **murphy, **others}


def null_figures() -> Json:
    names = ("ece_15", "classwise_ece_15", "equal_mass_ece_15", "top_label_ece_15", "smooth_ece")
    values = {"mean": 0.008, "p95": 0.012, "p99": 0.014}
    return {f"{name}_{part}": value for name in names for part, value in values.items()}


def calibration_document(
    labels: list[str] = LABELS, method: str = "map_temperature", params: Json | None = None
) -> Json:
    params = params if params is not None else {"temperature": 1.5}
    logits = np.random.default_rng(0).normal(size=(32, len(labels))) * 5
    bin_ = {"low": 0.1, "high": 1.0, "n": 9, "confidence": 0.9, "accuracy": 0.8, "null_low": 0.7, "null_high": 0.95}
    document = {
        "schema_version": 2,
        "model_sha256": sha256(NETWORKS["model.onnx"]),
        "labels": labels,
        "input": {"kind": "logits", "preprocessing_sha256": preprocessing_digest(SPEC)},
        "method": method,
        "params": params,
        "selection": {
            "candidates": [method],
            "cv_nll": {method: 0.1},
            "se": {method: 0.5},
            "chosen": method,
            "seed": 0,
            "folds": 5,
        },
        "gates": [{"name": "ece_15", "value": 0.011, "bound": 0.014, "passed": True}],
        "data": {
            split: {"n": 1000 + i, "n_errors": 30 + i, "index_sha256": sha256(split.encode())}
            for i, split in enumerate(("fit", "conformal", "eval"))
        },
        "metrics": {"before": figures(ece_15=0.034), "after": figures(), "null": null_figures()},
        "bins": {"before": [bin_], "after": [bin_]},
        "risk_coverage": [{"coverage": 1.0, "risk": 0.03, "confidence": 0.2}],
        "classes": [{"label": label, "n": 9, "recall": 0.9, "ece": 0.01, "ece_null_p99": 0.02} for label in labels],
        "confusion": [[9] * len(labels)] * len(labels),
        "conformal": [{"alpha": 0.05, "threshold": 0.4, "n": 1001}, {"alpha": 0.1, "threshold": 0.6, "n": 1001}],
        "abstention": {
            "risk": 0.02,
            "threshold": 0.7,
            "delta": 0.05,
            "coverage": 0.9,
            "risk_bound": 0.019,
            "n": 1001,
        },
        "ood": {"method": "energy", "threshold": -3.5, "id_tpr": 0.99, "parameters_sha256": {}},
        "created_by": {"python": "3.11.7"},
        "test_vectors": [
            {"logits": row.tolist(), "probabilities": calibrators.probabilities(method, row[None], params)[0].tolist()}
            for row in logits
        ],
    }
    return identified(document)


def manifest_document(directory: Path, labels: list[str] = LABELS) -> Json:
    return {
        "schema_version": 1,
        "name": directory.parent.name,
        "version": directory.name,
        "labels": labels,
        "input": {"kind": "photo", "height": 8, "width": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
        "files": {name: sha256((directory / name).read_bytes()) for name in FILES},
        "training": {"seed": 0, "nested": [{"anything": None}]},
        "created_by": {"python": "3.11.7"},
    }


def write_bundle(root: Path, name: str = "pets", version: str = "1", labels: list[str] = LABELS) -> Path:
    """A small bundle that holds together, though its networks are none."""
    directory = root / name / version
    directory.mkdir(parents=True)
    for file, content in NETWORKS.items():
        (directory / file).write_bytes(content)
    (directory / "MODEL_CARD.md").write_text("# Pets\n")
    (directory / "calibration.json").write_text(json.dumps(calibration_document(labels)))
    (directory / "manifest.json").write_text(json.dumps(manifest_document(directory, labels)))
    return directory


def edit_manifest(directory: Path, edit: Edit) -> None:
    document = json.loads((directory / "manifest.json").read_text())
    edit(document)
    (directory / "manifest.json").write_text(json.dumps(document))


def write_calibration(directory: Path, content: bytes) -> None:
    """Replace calibration.json and let the manifest vouch for it."""
    (directory / "calibration.json").write_bytes(content)
    edit_manifest(directory, lambda manifest: manifest["files"].update({"calibration.json": sha256(content)}))


def edit_calibration(directory: Path, edit: Edit) -> None:
    """Change calibration.json as one who knows how to forge digests and id would."""
    document = json.loads((directory / "calibration.json").read_text())
    edit(document)
    write_calibration(directory, json.dumps(identified(document)).encode())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


def refused(directory: Path, file: str, reason: str) -> None:
    """Loading fails, naming the file's path and the reason."""
    with pytest.raises(BundleError, match=reason) as refusal:
        load(directory)
    assert str(directory / file) in str(refusal.value)


def test_a_sound_bundle_loads(directory: Path) -> None:
    """What is in the files is what comes out."""
    found = load(directory)
    assert found.directory == directory
    assert found.manifest.name == "pets"
    assert found.manifest.input == SPEC
    assert found.calibration is not None
    assert found.manifest.labels == found.calibration.labels == LABELS
    assert found.calibration.params == {"temperature": 1.5}
    assert found.sha256 == sha256(NETWORKS["model.onnx"])


def test_a_bundle_may_hold_further_files(directory: Path) -> None:
    """A file the manifest says nothing of is not looked at."""
    (directory / "notes.txt").write_text("ours")
    load(directory)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(directory: Path, file: str) -> None:
    """Each file the manifest lists must be there."""
    (directory / file).unlink()
    refused(directory, file, "is missing")


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_noticed(directory: Path, file: str) -> None:
    """One bit of any file is enough; so is a byte appended."""
    content = (directory / file).read_bytes()
    for changed in (bytes([content[0] ^ 1]) + content[1:], content + b"\n", b""):
        (directory / file).write_bytes(changed)
        refused(directory, file, "not the file its manifest describes")


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused(directory: Path, file: str, make: Callable[[Path], None]) -> None:
    """A folder or a pipe in place of a file; nobody waits for a writer of it."""
    (directory / file).unlink()
    make(directory / file)
    refused(directory, file, "is no regular file")


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_link_is_refused(directory: Path, file: str) -> None:
    """Symbolic or hard, even to the very file: what it leads to may be changed from elsewhere."""
    path, other = directory / file, directory.parent / "other"
    path.rename(other)
    path.symlink_to(other)
    refused(directory, file, "is a symbolic link")
    path.unlink()
    path.hardlink_to(other)
    refused(directory, file, "has a second name")
    other.unlink()
    load(directory)


def test_a_bundle_that_is_a_link_is_refused(directory: Path) -> None:
    """So with its folder."""
    (directory.parent / "2").symlink_to(directory)
    refused(directory.parent / "2", "", "symbolic link")


@pytest.mark.parametrize("file", [*FILES, "manifest.json", "."])
def test_what_others_may_write_is_refused(directory: Path, file: str) -> None:
    """The world, or a group that is not its owner's own; the remedy is named."""
    path = directory / file
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(BundleError, match=r"may be written by others.*chmod go-w"):
        load(directory)
    path.chmod(path.stat().st_mode & ~0o002 | 0o020)
    load(directory)
    if os.geteuid() == 0:
        os.chown(path, -1, 12345)
        with pytest.raises(BundleError, match="may be written by others"):
            load(directory)


def test_files_are_opened_through_the_folder(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder put in its place meanwhile is not looked at: all files come from the one that was opened."""
    twin = write_bundle(directory.parent.parent / "twin")
    (twin / "model.onnx").write_bytes(b"another graph")
    true_init = files.Folder.__init__

    def swapping(self: files.Folder, path: Path, *, own: bool = False) -> None:
        true_init(self, path, own=own)
        directory.rename(directory.parent / "old")
        twin.rename(directory)

    with monkeypatch.context() as patch:
        patch.setattr(files.Folder, "__init__", swapping)
        assert load(directory).sha256 == sha256(NETWORKS["model.onnx"])
    refused(directory, "model.onnx", "not the file")


@pytest.mark.parametrize("how", ["rewritten", "replaced", "linked", "removed"])
@pytest.mark.parametrize("file", NETWORKS)
def test_a_file_swapped_after_the_check_is_never_taken(directory: Path, file: str, how: str) -> None:
    """What is read later for the runtime is checked again, in the bytes that the runtime gets."""
    seal = load(directory).seal
    network = model_file(directory, file, seal)
    assert network.read() == NETWORKS[file]
    if how == "rewritten":
        (directory / file).write_bytes(b"swapped")
    else:
        (directory / file).unlink()
    if how == "replaced":
        (directory / file).write_bytes(NETWORKS[file][::-1])
    if how == "linked":
        (directory.parent / file).write_bytes(NETWORKS[file])
        (directory / file).symlink_to(directory.parent / file)
    with pytest.raises(BundleError, match=file):
        network.read()


def test_what_was_hashed_is_what_is_given_away(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file swapped in the very moment between its digest and its use changes nothing."""
    network = model_file(directory, "model.onnx", load(directory).seal)

    def racing(content: bytes) -> str:
        found = sha256(content)
        (directory / "model.onnx").write_bytes(b"swapped")
        return found

    monkeypatch.setattr(seal_module, "sha256", racing)
    assert network.read() == NETWORKS["model.onnx"]
    with pytest.raises(BundleError, match="not the file its manifest describes"):
        network.read()


def test_a_calibration_swapped_while_it_is_read_is_noticed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are hashed themselves, not the file once more."""
    true_read = files.Folder.read

    def racing(self: files.Folder, name: str) -> bytes:
        if name == "calibration.json":
            (directory / name).write_bytes(json.dumps(calibration_document(["a", "b", "c"])).encode())
        return true_read(self, name)

    monkeypatch.setattr(files.Folder, "read", racing)
    refused(directory, "calibration.json", "not the file its manifest describes")


def test_a_bundle_without_manifest_is_refused(directory: Path) -> None:
    """An export that did not end has no manifest, since that is written last."""
    (directory / "manifest.json").unlink()
    refused(directory, "manifest.json", "is missing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"not JSON", b"\xff\xfe", b"{}", b"[" * 100_000])
def test_documents_that_are_not_such_json_are_refused(directory: Path, content: bytes) -> None:
    """Neither document may be anything but its own kind of JSON."""
    write_calibration(directory, content)
    refused(directory, "calibration.json", "is not valid|is of schema version None")
    (directory / "manifest.json").write_bytes(content)
    refused(directory, "manifest.json", "is not valid")


def leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document that holds a plain value."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from leaves(value)
        else:
            yield node, key


def test_no_value_of_a_calibration_can_be_edited_unnoticed(directory: Path) -> None:
    """Whichever value is changed, with the manifest's digest renewed: the bundle is refused."""
    document = calibration_document()
    places = list(leaves(document))
    assert len(places) > 50
    for container, key in places:
        value = container[key]
        container[key] = (
            value + "0" if isinstance(value, str) else value * 1.01 if isinstance(value, float) else value + 1
        )
        write_calibration(directory, json.dumps(document).encode())
        refused(directory, "calibration.json", "cannot be trusted|is not valid|is of schema version")
        container[key] = value
    write_calibration(directory, json.dumps(document).encode())
    load(directory)


def test_an_edit_that_is_valid_otherwise_breaks_the_id(directory: Path) -> None:
    """A friendlier figure does not go with the id of the true one."""
    document = calibration_document()
    document["metrics"]["after"]["ece_15"] = 0.001
    write_calibration(directory, json.dumps(document).encode())
    refused(directory, "calibration.json", "the id does not match the content")


def test_the_layout_of_a_document_does_not_matter(directory: Path) -> None:
    """The id is of the content: other indentation and order of keys leave it valid."""
    document = calibration_document()
    write_calibration(directory, json.dumps(dict(reversed(document.items())), indent=3).encode())
    load(directory)


def setting(*path: str | int, to: Any) -> Edit:
    """Set one value, deep in a document."""

    def edit(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (setting("labels", to=["cat", "dog", "fox"]), "its labels are not the manifest's"),
        (setting("labels", to=["dog", "cat", "owl"]), "its labels are not the manifest's"),
        (setting("labels", to=[]), "is not valid"),
        (setting("model_sha256", to=sha256(b"another graph")), "belongs to another model.onnx"),
        (setting("input", "preprocessing_sha256", to=sha256(b"another way")), "other preprocessing"),
        (setting("params", "temperature", to=1.6), "test vectors"),
        (setting("params", "temperature", to=0.049), "its temperature cannot be"),
        (setting("params", "temperature", to=20.1), "its temperature cannot be"),
        (setting("params", "temperature", to=0.0), "its temperature cannot be"),
        (setting("params", "temperature", to=-1.5), "its temperature cannot be"),
        (setting("params", "temperature", to=float("nan")), "is not valid.*temperature"),
        (setting("params", "temperature", to=float("inf")), "is not valid.*temperature"),
        (setting("params", "temperature", to=None), "is not valid.*temperature"),
        (setting("params", "bias", to=0.1), "its bias cannot be"),
        (setting("params", to={}), "its temperature cannot be"),
        (setting("surprise", to=1), "is not valid.*surprise"),
        (setting("schema_version", to=1), "is of schema version 1, not 2"),
        (setting("schema_version", to=None), "is of schema version None"),
        (setting("method", to="none"), "is not valid.*method"),
        (setting("metrics", "after", "ece_15", to=float("nan")), "is not valid.*ece_15"),
        (setting("metrics", "after", "accuracy", to=1.01), "is not valid.*accuracy"),
        (setting("conformal", to=[]), "is not valid.*conformal"),
        (setting("conformal", 0, "n", to=18), "too few images"),
        (setting("conformal", 0, "alpha", to=0), "is not valid.*alpha"),
        (setting("conformal", 1, "alpha", to=0.05), "names a coverage twice"),
        (setting("conformal", 0, "threshold", to=0.41), "the prediction_set_threshold in model.onnx is another"),
        (setting("ood", "threshold", to=-3.4), "the ood_threshold in model.onnx is another"),
        (setting("ood", "parameters_sha256", to={"bank": "0" * 64}), "the bank in model.onnx is another"),
        (setting("gates", 0, "passed", to=False), r"has not passed its gates \(ece_15\)"),
        (setting("abstention", "threshold", to=2), "is not valid.*abstention"),
        (setting("conformal", 0, "threshold", to=float("-inf")), "is not valid.*threshold"),
        (setting("ood", "threshold", to=float("nan")), "is not valid.*threshold"),
        (setting("data", "fit", "index_sha256", to=sha256(b"eval")), "does not tell its splits apart"),
        (setting("data", "fit", "index_sha256", to=sha256(b"conformal")), "does not tell its splits apart"),
        (setting("data", "train", to={"n": 1, "n_errors": 0, "index_sha256": "0" * 64}), "is not valid"),
        (lambda document: document["data"].pop("fit"), "does not name its three splits"),
        (lambda document: document.pop("test_vectors"), "is not valid.*test_vectors"),
        (setting("test_vectors", to=[]), "test vectors"),
        (setting("test_vectors", 2, "probabilities", 0, to=0.5), "test vectors"),
        (lambda document: document["test_vectors"][1]["logits"].pop(), "test vectors"),
        (lambda document: document["test_vectors"][1]["probabilities"].append(0.0), "test vectors"),
    ],
)
def test_a_calibration_that_cannot_be_meant_is_refused(directory: Path, edit: Edit, reason: str) -> None:
    """Though digests and id are in order, what contradicts itself or the manifest is not served."""
    edit_calibration(directory, edit)
    refused(directory, "calibration.json", f"(?s){reason}")


@pytest.mark.parametrize(("alpha", "enough"), [(0.05, 19), (0.1, 9), (0.01, 99)])
def test_the_fewest_images_for_a_coverage_are_accepted(directory: Path, alpha: float, enough: int) -> None:
    """⌈1/α⌉ − 1 held-out images carry a threshold; one fewer cannot."""
    edit_calibration(directory, setting("conformal", to=[{"alpha": alpha, "threshold": 0.4, "n": enough}]))
    load(directory)
    edit_calibration(directory, setting("conformal", 0, "n", to=enough - 1))
    refused(directory, "calibration.json", "too few images")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (setting("labels", to=["cat", "dog"]), "labels"),
        (setting("labels", to=[]), "labels"),
        (setting("input", "height", to=9), "other preprocessing"),
        (setting("input", "mean", 0, to=0.51), "other preprocessing"),
        (setting("input", "kind", to="sound"), "input"),
        (setting("name", to="../pets"), "name"),
        (setting("name", to=""), "name"),
        (setting("schema_version", to=2), "schema_version"),
        (setting("surprise", to=1), "surprise"),
        (setting("files", "model.onnx", to="0"), "files"),
        (lambda document: document["files"].pop("model.onnx"), "does not vouch for model.onnx"),
        (lambda document: document.pop("files"), "files"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(directory: Path, edit: Edit, reason: str) -> None:
    """What is missing, strange or contradicts the calibration is not served."""
    edit_manifest(directory, edit)
    refused(directory, "", f"(?s){reason}")


def test_a_bundle_without_calibration_promises_nothing(directory: Path) -> None:
    """It is served, and knows that it has none."""
    (directory / "calibration.json").unlink()
    edit_manifest(directory, lambda manifest: manifest["files"].pop("calibration.json"))
    found = load(directory)
    assert found.calibration is None
    assert found.coverages == ()
    assert found.sha256 == sha256(NETWORKS["model.onnx"])


ISOTONIC = {"temperature": 1.5, "knots": [0.0, 0.25, 1.0], "values": [0.0, 0.5, 1.0]}
OTHER_METHODS: dict[str, tuple[Json, Json]] = {
    # Parameters, and what the graph computes with.
    "identity": ({}, {}),
    "beta_pooled": (beta := {"temperature": 1.5, "a": 1.2, "b": 0.8, "c": 0.1}, beta),
    "isotonic_pooled": (
        ISOTONIC,
        {"temperature": 1.5, "starts": [0, 0.25], "widths": [0.25, 0.75], "slopes": [2, 2 / 3]},
    ),
    "vector": (
        classes := {"weights": [1.0, 0.9, 1.1], "biases": [0.0, 0.1, -0.1]},
        classes,
    ),
}


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_every_method_is_checked_against_the_graph(directory: Path, method: str) -> None:
    """Each parameter by its name; one that is another in the graph, or missing there, is noticed."""
    params, weights = OTHER_METHODS[method]
    thresholds = {name: value for name, value in PARAMETERS.items() if name != "temperature"}

    def with_graph(**parameters: Any) -> None:
        content = network(**parameters)
        (directory / "model.onnx").write_bytes(content)
        document = calibration_document(method=method, params=params) | {"model_sha256": sha256(content)}
        write_calibration(directory, json.dumps(identified(document)).encode())
        edit_manifest(directory, lambda manifest: manifest["files"].update({"model.onnx": sha256(content)}))

    with_graph(**weights, **thresholds)
    load(directory)
    for name, value in weights.items():
        with_graph(**{**weights, name: np.asarray(value) + 1e-6}, **thresholds)
        refused(directory, "calibration.json", f"the {name} in model.onnx is another")
        with_graph(**{key: weights[key] for key in weights if key != name}, **thresholds)
        refused(directory, "calibration.json", f"model.onnx has no {name}")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (setting("params", "knots", to=[0.0, 0.5, 0.25, 1.0]), "does not rise"),
        (setting("params", "knots", to=[0.1, 0.25, 1.0]), "does not rise"),
        (setting("params", "values", to=[0.0, 0.5, 0.5]), "does not rise"),
        (setting("params", "values", to=[0.1, 0.5, 1.0]), "does not rise"),
        (setting("params", "values", to=[0.0, 1.0]), "does not rise"),
        (setting("params", "values", to=0.5), "its values cannot be"),
    ],
)
def test_a_map_that_does_not_rise_is_refused(directory: Path, edit: Edit, reason: str) -> None:
    """It would turn the order of the classes around."""
    document = calibration_document(method="isotonic_pooled", params=copy.deepcopy(ISOTONIC))
    edit(document)
    write_calibration(directory, json.dumps(identified(document)).encode())
    refused(directory, "calibration.json", reason)


def test_a_graph_that_is_none_is_refused(directory: Path) -> None:
    """Though its digest is in order."""
    (directory / "model.onnx").write_bytes(b"\xff" * 40)
    edit_manifest(directory, lambda manifest: manifest["files"].update({"model.onnx": sha256(b"\xff" * 40)}))
    edit_calibration(directory, setting("model_sha256", to=sha256(b"\xff" * 40)))
    refused(directory, "model.onnx", "is not a sound ONNX file")


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/etc/hostname", "a/../../x", "sub/x", "", ".hidden", "a\\b", "a\n"]
)
def test_a_manifest_cannot_point_out_of_its_bundle(directory: Path, name: str) -> None:
    """Files are named plainly; no path leads the loader elsewhere, even to a file with the right digest."""
    (directory.parent / "x").write_bytes(b"x")
    edit_manifest(directory, lambda manifest: manifest["files"].update({name: sha256(b"x")}))
    refused(directory, "manifest.json", "is not valid")


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["9", "10"], "10"),
        (["1.9", "1.10"], "1.10"),
        (["2", "1.9.9"], "2"),
        (["1", "1.0.1", "1.1"], "1.1"),
    ],
)
def test_the_newest_version_is_found_by_number(tmp_path: Path, versions: list[str], newest: str) -> None:
    """10 comes after 9."""
    for version in versions:
        write_bundle(tmp_path, version=version)
    assert discover(tmp_path)["pets"].directory == tmp_path / "pets" / newest


def test_unfinished_and_hidden_folders_are_ignored(tmp_path: Path) -> None:
    """Staging folders of an export, links such as `latest`, stray files and hidden folders are no bundles."""
    directory = write_bundle(tmp_path)
    for folder in (".2-abc", "2-abc", "latest", "v3", "1.2.3.4", "1."):
        (directory.parent / folder).mkdir()
    (tmp_path / ".cache" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("bundles")
    assert {name: found.directory for name, found in discover(tmp_path).items()} == {"pets": directory}


def test_all_models_are_found_or_those_named(tmp_path: Path) -> None:
    """Without names every model is loaded; with names only those, in the order named, and no other is looked at."""
    for name in ("birds", "pets", "fish"):
        write_bundle(tmp_path, name)
    assert list(discover(tmp_path)) == ["birds", "fish", "pets"]
    (tmp_path / "fish" / "1" / "model.onnx").unlink()
    assert list(discover(tmp_path, ("pets", "birds"))) == ["pets", "birds"]
    with pytest.raises(BundleError, match=r"fish.*is missing"):
        discover(tmp_path)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The message has the missing names, and only those, and the folder."""
    write_bundle(tmp_path)
    with pytest.raises(BundleError, match=f"no bundle of fish, birds under {tmp_path}"):
        discover(tmp_path, ("pets", "fish", "birds"))


@pytest.mark.parametrize("name", ["../pets", ".", "", "pets/1", ".hidden"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    """Only folders right under the root are models."""
    write_bundle(tmp_path)
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(BundleError, match="no bundle of"):
        discover(tmp_path, (name,))


def test_a_root_without_models_is_refused(tmp_path: Path) -> None:
    """An empty root, none at all or a file in its place: the message says where and what to do."""
    (tmp_path / "file").write_text("")
    for root in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(BundleError, match=f"no bundle of any model under {root}; see python -m export"):
            discover(root)


def test_a_model_without_version_is_refused(tmp_path: Path) -> None:
    """A folder that holds no version is named."""
    (tmp_path / "pets" / ".1-abc").mkdir(parents=True)
    with pytest.raises(BundleError, match="pets holds no version"):
        discover(tmp_path)


@pytest.mark.parametrize("moved", ["cats/1", "pets/2"])
def test_a_bundle_in_anothers_place_is_refused(tmp_path: Path, moved: str) -> None:
    """The name and version of the folder are those the bundle answers with."""
    directory = write_bundle(tmp_path / "old")
    (tmp_path / "new" / moved).parent.mkdir(parents=True)
    directory.rename(tmp_path / "new" / moved)
    with pytest.raises(BundleError, match=f"{moved} holds pets/1"):
        discover(tmp_path / "new")


def write_variant(root: Path, precision: str, folder: str, version: str = "1") -> Path:
    """A bundle of pets, in a folder of this name, that says it computes in `precision`."""
    made = write_bundle(root / "made", version=version)
    pin = "pets/1@sha256:" + "0" * 64
    edit_manifest(made, lambda manifest: manifest.update(variant={"precision": precision, "made_from": pin}))
    placed = root / folder / version
    placed.parent.mkdir(exist_ok=True)
    made.rename(placed)
    shutil.rmtree(root / "made")
    return placed


def test_a_variant_is_found_by_its_precision(tmp_path: Path) -> None:
    """Under the model's name, the newest of its own; without asking, no variant is looked at."""
    plain = write_bundle(tmp_path)
    write_variant(tmp_path, "int8", "pets-int8")
    newer = write_variant(tmp_path, "int8", "pets-int8", "1.1")
    assert {name: found.directory for name, found in discover(tmp_path, precision="int8").items()} == {"pets": newer}
    (newer / "model.onnx").unlink()
    assert {name: found.directory for name, found in discover(tmp_path).items()} == {"pets": plain}
    assert discover(tmp_path)["pets"].manifest.precision == "float32"


def test_a_model_without_the_variant_asked_for_is_named(tmp_path: Path) -> None:
    """It is not served as it was trained instead; unless only others are asked for."""
    write_bundle(tmp_path)
    write_bundle(tmp_path, "fish")
    placed = write_variant(tmp_path, "int8", "pets-int8")
    with pytest.raises(BundleError, match=r"no int8 variant of fish under .*export variant int8 NAME.*TRUEODDS_MODELS"):
        discover(tmp_path, precision="int8")
    assert discover(tmp_path, ("pets",), precision="int8")["pets"].directory == placed
    with pytest.raises(BundleError, match="no fp16 variant of pets"):
        discover(tmp_path, ("pets",), precision="fp16")


@pytest.mark.parametrize(("precision", "folder"), [("int8", "pets"), ("int8", "pets-fp16"), ("fp16", "pets-int8")])
def test_a_variant_in_anothers_place_is_refused(tmp_path: Path, precision: str, folder: str) -> None:
    """What is served is what was asked for."""
    write_variant(tmp_path, precision, folder)
    asked: Precision = "float32" if folder == "pets" else "int8" if folder == "pets-int8" else "fp16"
    with pytest.raises(BundleError, match=f"{folder}/1 holds pets-{precision}/1"):
        discover(tmp_path, precision=asked)


@pytest.mark.parametrize(
    "variant",
    [
        {"precision": "int4"},
        {"precision": "float32"},
        {"made_from": "pets"},
        {"made_from": "pets/1@sha256:0"},
        {"a": 1},
    ],
)
def test_a_variant_that_cannot_be_meant_is_refused(directory: Path, variant: Json) -> None:
    """Another precision, or no pin of what it was made from."""
    whole = {"precision": "int8", "made_from": "pets/1@sha256:" + "0" * 64}
    edit_manifest(directory, lambda manifest: manifest.update(variant=whole | variant))
    refused(directory, "manifest.json", "variant")
