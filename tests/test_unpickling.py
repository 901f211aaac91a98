"""Nothing that comes from the network or the store is unpickled: unpickling runs whatever code the bytes name."""

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from service import bundle
from service.backends import torchscript
from service.bundle import MANIFEST
from service.errors import BackendError, BundleError
from service.trust import Trust
from tests.conftest import ROOT, Server, committed, fixtures
from tests.test_bundle import sha256

pytestmark = pytest.mark.slow

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
# Of numpy and torch; read_array unpickles by default too.
LOADERS = {"load", "read_array", "fromfile", "loads", "load_global_deps", "open_memmap"}
MODULES = sorted((ROOT / "service").rglob("*.py"))


class Bomb:
    """Unpickled anywhere, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.canary), os.O_CREAT)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_the_bomb_works(canary: Path) -> None:
    """Else the tests below would show nothing."""
    os.close(pickle.loads(pickle.dumps(Bomb(canary))))
    assert canary.exists()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_of_the_service_can_unpickle(path: Path) -> None:
    """None imports what unpickles, or calls numpy.load or torch.load; torch.jit.load stands where it is guarded."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & UNPICKLERS, ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
            called = ast.unparse(node.func)
            if called.startswith(("np.", "numpy.", "torch.")):
                assert (path.name, called) == ("torchscript.py", "torch.jit.load"), called


def payloads(canary: Path) -> dict[str, bytes]:
    """The bomb in every form in which something is wont to unpickle it."""
    objects = np.array([Bomb(canary)], dtype=object)
    npy, npz, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, objects, allow_pickle=True)
    np.savez(npz, pixels=objects)
    torch.save(Bomb(canary), archive)
    return {
        **{f"pickle {protocol}": pickle.dumps(Bomb(canary), protocol) for protocol in range(6)},
        "pickled arguments": pickle.dumps({"pixels": Bomb(canary), "model": "digits"}),
        "npy": npy.getvalue(),
        "npz": npz.getvalue(),
        "torch": archive.getvalue(),
    }


CONTENT_TYPES = [
    "application/vnd.bentoml+pickle",
    "Application/VND.bentoml+pickle ; x=y",
    "application/x-npy",
    "application/octet-stream",
    "application/json",
    "image/png",
    "application/python-pickle",
    "application/x-www-form-urlencoded",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("path", ["/v1/models/digits/classify", "/classify_pixels", "/schema.json"])
def test_no_request_is_unpickled(server: Server, canary: Path, content_type: str, path: str) -> None:
    """By no route, BentoML's among them, under no media type, BentoML's own among them; and the service goes on."""
    for name, body in payloads(canary).items():
        headers = {"content-type": content_type, "buffer-lengths": str(len(body)), "payload-container": "NdArray"}
        answer = httpx.post(server.url + path, content=body, headers=headers, timeout=30)
        assert 400 <= answer.status_code < 500, (name, answer.status_code)
        form = httpx.post(server.url + path, files={"file": (name, body, content_type), "pixels": body}, timeout=30)
        assert form.status_code >= 400 or path.endswith("classify"), (name, form.status_code)
    assert not canary.exists()
    image, label = fixtures("digits")[0]
    assert server.post("digits", image).json()["predictions"][0]["label"] == label


WATCHED = """
import sys
found = []
sys.addaudithook(lambda event, arguments: found.append(arguments) if event == "pickle.find_class" else None)
import numpy, onnxruntime, torch, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from service import bundle, registry, tuning
from service.board import Board
from service.settings import Settings
found.clear()
settings = Settings(backend=sys.argv[1], pinned=tuple(f.seal.pin for f in bundle.discover(Settings().bundles).values()))
served = registry.load(settings, Board(), lambda name, report: None, Path(sys.argv[2]))
served = registry.load(settings, Board(), lambda name, report: None, Path(sys.argv[2]))
for name, model in served.models.items():
    spec = model.bundle.manifest.input
    model.backend.forward(numpy.zeros((9, spec.height, spec.width, 3), "uint8"))
served.close()
print(found)
"""


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_loading_the_bundles_unpickles_nothing(backend: str, tmp_path: Path) -> None:
    """Python reports each name that an unpickler looks up; from discovery to the first answer there is none."""
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, backend, str(tmp_path / "cache")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.stdout.strip().splitlines()[-1:] == ["[]"], ended.stdout + ended.stderr


def with_archive(content: bytes, root: Path) -> Path:
    """The bundle of digits with another TorchScript file, for which its manifest vouches."""
    directory = root / "digits" / committed("digits").name
    shutil.copytree(committed("digits"), directory)
    (directory / torchscript.FILE).write_bytes(content)
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][torchscript.FILE] = sha256(content)
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return directory


@pytest.mark.parametrize("form", ["pickle 2", "npy", "npz", "torch"])
def test_a_pickle_in_the_place_of_torchscript_runs_nothing(tmp_path: Path, canary: Path, form: str) -> None:
    """Nobody vouches for it: it is not opened. Somebody does: torch finds no TorchScript in it. Neither runs it."""
    directory = with_archive(payloads(canary)[form], tmp_path)
    seal = bundle.load(directory).seal
    with pytest.raises(BundleError, match="TorchScript can carry code"):
        torchscript.load(directory, "cpu", 1, seal=seal)
    for vouched in (bundle.load(directory, Trust((seal.pin,))).seal, None):
        with pytest.raises(BackendError, match="is no TorchScript archive"):
            torchscript.load(directory, "cpu", 1, seal=vouched)
    assert not canary.exists()


def test_a_bomb_inside_a_sound_archive_is_not_set_off(tmp_path: Path, canary: Path) -> None:
    """The archive of digits with the pickle of its module replaced."""
    content, sound = io.BytesIO(), committed("digits") / torchscript.FILE
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(content, "w") as target:
        for entry in source.infolist():
            bomb = entry.filename.endswith("/data.pkl")
            data = pickle.dumps(Bomb(canary), 2) if bomb else source.read(entry)
            target.writestr(zipfile.ZipInfo(entry.filename), data)
    directory = with_archive(content.getvalue(), tmp_path)
    pin = bundle.load(directory).seal.pin
    with pytest.raises(BackendError, match="is no TorchScript archive"):
        torchscript.load(directory, "cpu", 1, seal=bundle.load(directory, Trust((pin,))).seal)
    assert not canary.exists()
