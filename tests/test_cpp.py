"""The C++ programs of export/cpp answer as the service does, and say what is wrong where they cannot."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from service import bundle
from service.backends import onnx, torchscript
from service.bundle import MANIFEST
from service.images import MAX_SIDE, Pixels, decode, read_header, to_pixels
from service.settings import BUNDLES
from tests.conftest import ROOT, Server, committed, fixtures

SOURCES, BUILD = ROOT / "export" / "cpp", ROOT / ".cache" / "tests" / "cpp"
HEADERS = ROOT / ".cache" / "onnxruntime"
LIBRARY = [Path(prefix) / "nlohmann" / "json.hpp" for prefix in ("/usr/include", "/usr/local/include")]
LACKING = [tool for tool in ("cmake", "c++", "make") if shutil.which(tool) is None]
LACKING += [] if any(path.exists() for path in LIBRARY) else ["nlohmann-json3-dev"]
FORMS = {"trueodds_torch": torchscript.FILE, "trueodds_onnx": onnx.FILE}
# By what a network takes, which of the fixtures it is shown.
PICTURES = {"digit": "digits", "photo": "cifar10"}
COMPARED = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"apt install {' '.join(LACKING)}"),
]

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def built() -> Path:
    """Where the programs lie, built with warnings as errors."""
    configure = ["cmake", "--fresh", "-S", str(SOURCES), "-B", str(BUILD), f"-DPython3_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", str(BUILD), "--parallel"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD


def runnable(path: Path) -> Program:
    def call(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=60)

    return call


@pytest.fixture(params=FORMS)
def program(request: pytest.FixtureRequest, built: Path) -> Program:
    """One of the programs, to be called with its arguments."""
    if request.param == "trueodds_onnx" and not HEADERS.exists():
        pytest.skip("ONNX Runtime's headers are not here: export/cpp/headers.sh fetches them")
    return runnable(built / request.param)


@pytest.fixture
def quicker(built: Path) -> Program:
    """What both have in common is tested with the one that starts sooner, where it is there."""
    return runnable(built / ("trueodds_onnx" if HEADERS.exists() else "trueodds_torch"))


def shown(model: str) -> list[tuple[bytes, Pixels]]:
    """Pictures, and what the network of a model is fed of each."""
    spec = bundle.load(committed(model)).manifest.input
    pictures = [picture for picture, _ in fixtures(PICTURES[spec.kind])[:COMPARED]]
    return [(picture, to_pixels(decode(read_header(picture, MAX_SIDE)), spec)) for picture in pictures]


def write_ppm(path: Path, pixels: Pixels, head: str = "P6\n# a comment\n{width} {height}\n255\n") -> Path:
    height, width, _ = pixels.shape
    path.write_bytes(head.format(width=width, height=height).encode() + pixels.tobytes())
    return path


def answers(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_label(answer: dict[str, Any], member: str) -> dict[str, float]:
    return {prediction["label"]: prediction[member] for prediction in answer["predictions"]}


def agree(told: dict[str, Any], served: dict[str, Any]) -> None:
    """Whether a program and the service say the same: probabilities to 1e-5, scores to 1e-4."""
    assert told["predictions"][0]["label"] == served["predictions"][0]["label"]
    for member in ("probability", "uncalibrated_probability"):
        assert by_label(told, member) == pytest.approx(by_label(served, member), rel=0, abs=1e-5)
    assert told["ood"]["score"] == pytest.approx(served["ood"]["score"], rel=0, abs=1e-4)
    assert told["ood"]["is_ood"] == served["ood"]["is_ood"]
    assert told["abstain"] == served["abstain"]
    for member in ("model", "prediction_set"):
        assert told[member].items() <= served[member].items()


@pytest.mark.parametrize("model", bundle.newest(BUNDLES))
def test_answers_are_the_services(model: str, program: Program, server: Server, tmp_path: Path) -> None:
    """For the fixtures as .npy, as .ppm and as .rgb, each as the service answers to the picture itself."""
    pictures, pixels = zip(*shown(model), strict=True)
    served = [server.post(model, picture, query="?top_k=all").json() for picture in pictures]
    assert len(served) == COMPARED
    np.save(tmp_path / "images.npy", np.stack(pixels))
    (tmp_path / "images.rgb").write_bytes(np.stack(pixels).tobytes())
    ppm = [write_ppm(tmp_path / f"{at}.ppm", image) for at, image in enumerate(pixels)]
    for files in ([tmp_path / "images.npy"], [tmp_path / "images.rgb"], ppm):
        for told, expected in zip(answers(program(committed(model), *files)), served, strict=True):
            agree(told, expected)


def test_more_images_than_a_batch(quicker: Program, tmp_path: Path) -> None:
    """Are answered in order, each as if alone."""
    spec = bundle.load(committed("cifar10")).manifest.input
    images = np.random.default_rng(0).integers(0, 256, (130, spec.height, spec.width, 3), np.uint8)
    np.save(tmp_path / "all.npy", images)
    np.save(tmp_path / "last.npy", images[-1])
    told = answers(quicker(committed("cifar10"), tmp_path / "all.npy"))
    (last,) = answers(quicker(committed("cifar10"), tmp_path / "last.npy"))
    assert len(told) == len(images)
    assert told[-1]["ood"]["score"] == pytest.approx(last["ood"]["score"], abs=1e-4)
    assert len({line["ood"]["score"] for line in told}) == len(images)


def test_a_bundle_without_calibration_promises_nothing(quicker: Program, tmp_path: Path) -> None:
    """It always abstains, and no coverage is told, as by the service."""
    copied = changed_bundle(tmp_path, lambda manifest: manifest["files"].pop("calibration.json"))
    (_, pixels), *_ = shown("digits")
    (told,) = answers(quicker(copied, write_ppm(tmp_path / "one.ppm", pixels)))
    assert told["abstain"] is True
    assert told["prediction_set"]["coverage"] is None


@pytest.mark.parametrize("count", [0, 1])
def test_called_wrongly(count: int, quicker: Program) -> None:
    """Says how it is called, on standard error; exit status 2."""
    done = quicker(*["bundle"][:count])
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: trueodds_" in done.stderr


def images(shape: tuple[int, ...] = (2, 32, 32, 3), dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def npy_file(array: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            npy.write_array(file, array)

    return write


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut(write: Callable[[Path], None], size: int) -> Callable[[Path], None]:
    def write_cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:size])

    return write_cut


BLACK = bytes(32 * 32 * 3)
BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "not there": ("a.npy", lambda path: None, "cannot be read"),
    "a folder": ("a.npy", Path.mkdir, "cannot be read"),
    "empty": ("a.npy", holding(b""), "neither .npy nor"),
    "another kind": ("a.png", holding(b"\x89PNG" + BLACK), "decode it first"),
    "bytes of no name": ("a.bin", holding(BLACK), "neither .npy nor"),
    "floats": ("a.npy", npy_file(images(dtype=np.float32)), "no array of uint8 in C order"),
    "fortran": ("a.npy", npy_file(np.asfortranarray(images())), "no array of uint8 in C order"),
    "objects": ("a.npy", npy_file(np.array([{}], object)), "no array of uint8 in C order"),
    "grey": ("a.npy", npy_file(images((2, 32, 32))), "(N, 32, 32, 3)"),
    "too large": ("a.npy", npy_file(images((2, 64, 64, 3))), "(N, 32, 32, 3)"),
    "channels first": ("a.npy", npy_file(images((2, 3, 32, 32))), "(N, 32, 32, 3)"),
    "none": ("a.npy", npy_file(images((0, 32, 32, 3))), "no image in it"),
    "magic alone": ("a.npy", holding(b"\x93NUMPY"), "header is damaged"),
    "half a header": ("a.npy", cut(npy_file(images()), 40), "header is damaged"),
    "no pixels": ("a.npy", cut(npy_file(images()), 128), "holds 0 bytes of pixels, not 6144"),
    "half of them": ("a.npy", cut(npy_file(images()), 5000), "bytes of pixels, not 6144"),
    "a long header": ("a.npy", holding(b"\x93NUMPY\2\0\xff\xff\xff\xff" + BLACK), "header is damaged"),
    "many images": (
        "a.npy",
        holding(
            b"\x93NUMPY\1\0\x80\0"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999, 32, 32, 3), }".ljust(128)
        ),
        "holds 0 bytes of pixels",
    ),
    "other size": ("a.ppm", holding(b"P6 28 28 255\n" + BLACK), "28 x 28 pixels, the network takes 32 x 32"),
    "deep": ("a.ppm", holding(b"P6 32 32 65535\n" + BLACK * 2), "8 bits a colour"),
    "short": ("a.ppm", holding(b"P6 32 32 255\n" + BLACK[1:]), "holds 3071 bytes of pixels, not 3072"),
    "long": ("a.ppm", holding(b"P6 32 32 255\n" + BLACK + b"\0"), "holds 3073 bytes of pixels, not 3072"),
    "text": ("a.ppm", holding(b"P6 thirty two"), "header is damaged"),
    "comment without end": ("a.ppm", holding(b"P6 #" + b"x" * 10**6), "header is damaged"),
    "spaces without end": ("a.ppm", holding(b"P6" + b" " * 10**6), "header is damaged"),
    "no multiple": ("a.rgb", holding(BLACK + b"\0"), "holds 3073 bytes of pixels, not 3072"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_images(case: str, quicker: Program, tmp_path: Path) -> None:
    """Is named with what is wrong with it; exit status 1, nothing on standard output."""
    name, write, reason = BAD_FILES[case]
    write(tmp_path / name)
    done = quicker(committed("cifar10"), tmp_path / name)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path / name) in done.stderr
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def changed_bundle(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle whose manifest is another."""
    copied = Path(shutil.copytree(committed("digits"), tmp_path / "bundle"))
    manifest = json.loads((copied / MANIFEST).read_text())
    change(manifest)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    return copied


def refusal(program: Program, copied: Path) -> str:
    """What a program says of a bundle, one line, with exit status 1."""
    np.save(copied.parent / "image.npy", images())
    done = program(copied, copied.parent / "image.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_what_is_no_bundle(quicker: Program, tmp_path: Path) -> None:
    """A folder without a manifest, one whose manifest is no JSON, and one that lacks what is needed."""
    assert "name a bundle's folder" in refusal(quicker, tmp_path / "nothing")
    copied = changed_bundle(tmp_path, lambda manifest: manifest.pop("labels"))
    assert "is no bundle" in refusal(quicker, copied)
    (copied / MANIFEST).write_text("{")
    assert "is no bundle" in refusal(quicker, copied)


def test_labels_of_another_network(quicker: Program, tmp_path: Path) -> None:
    """As many numbers as labels, or nothing is answered."""
    copied = changed_bundle(tmp_path, lambda manifest: manifest["labels"].pop())
    assert "logits are 20 numbers, not 18" in refusal(quicker, copied)


def test_a_network_that_cannot_be_loaded(program: Program, tmp_path: Path) -> None:
    """Missing or damaged, it is named."""
    copied = changed_bundle(tmp_path, lambda manifest: None)
    for name in FORMS.values():
        (copied / name).write_bytes(b"no network")
    assert "cannot be loaded" in refusal(program, copied)
    for name in FORMS.values():
        (copied / name).unlink()
    assert any(f"{name} is missing" in refusal(program, copied) for name in FORMS.values())
