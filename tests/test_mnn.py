"""service.backends.mnn: larger batches by Winograd's convolutions, only where they answer as ONNX Runtime does."""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from loadtest.foreign import main as wrap
from service import bundle, registry, tuning
from service.backends import OUTPUTS, Backend, Outputs, Plan, mnn, onnx
from service.backends.agreement import disagreement
from service.board import Board
from service.errors import BackendError
from service.images import Pixels
from service.seal import model_file
from service.settings import Settings
from tests.conftest import ROOT
from tests.test_backends import assert_same, random_pixels, reference

pytestmark = pytest.mark.slow

if mnn.runtime() is None:
    pytest.skip("MNN is installed on x86-64 Linux only", allow_module_level=True)

SIZE = 32


def network(opset: int = 17, activation: str = "Relu") -> onnx_format.ModelProto:
    """Three 3x3 convolutions of 3, 16, 32 and 64 planes, a global maximum and ten logits."""
    rng = np.random.default_rng(0)
    nodes, weights, given_to = [], [], "x"
    for i, (planes, outputs) in enumerate([(3, 16), (16, 32), (32, 64)]):
        kernel = rng.normal(0, (2 / (9 * planes)) ** 0.5, (outputs, planes, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes += [
            helper.make_node("Conv", [given_to, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node(activation, [f"c{i}"], [f"a{i}"]),
        ]
        given_to = f"a{i}"
    weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (64, 10)).astype(np.float32), "head"))
    nodes += [
        helper.make_node("GlobalMaxPool", [given_to], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, SIZE, SIZE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 10))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def bundle_of(model: onnx_format.ModelProto, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx_format.save(model, folder / "guest.onnx")
    labels = ",".join(f"label {i}" for i in range(10))
    into = folder / "bundles"
    options = ["--name=guest", f"--labels={labels}", "--mean=0.5,0.4,0.3", "--std=0.2,0.25,0.3", f"--into={into}"]
    assert wrap([str(folder / "guest.onnx"), *options]) == 0
    return into / "guest" / "1"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(network(), tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def gelu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MNN approximates."""
    return bundle_of(network(20, "Gelu"), tmp_path_factory.mktemp("gelu"))


@pytest.fixture(scope="module")
def winograd(guest: Path) -> Backend:
    return loaded(guest)


def loaded(directory: Path, cache: Path | None = None) -> Backend:
    """With Winograd's convolutions for every batch, where the network allows them."""
    backend = onnx.load(directory, "cpu", 1, winograd=True, cache=cache)
    backend.plan = Plan(winograd_from=1)
    return backend


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 99), strided=st.booleans())
def test_it_answers_as_the_bundle_does(winograd: Backend, guest: Path, count: int, seed: int, strided: bool) -> None:
    """For any images in batches of any size, however they lie in memory, and with the types the service relies on."""
    assert winograd.placement.winograd.startswith("mnn ")
    pixels = random_pixels(2 * count, seed)[::2] if strided else random_pixels(count, seed)
    answers, expected = winograd.forward(pixels), reference(guest, pixels)
    assert disagreement(answers, expected) is None
    assert all(getattr(answers, name).dtype == getattr(expected, name).dtype for name in OUTPUTS)


def test_an_answer_outlives_the_next_batch(winograd: Backend) -> None:
    """What was answered is not what the library writes its next answers to."""
    first = winograd.forward(random_pixels(4, 1))
    kept = [getattr(first, name).copy() for name in OUTPUTS]
    winograd.forward(random_pixels(4, 2))
    for name, values in zip(OUTPUTS, kept, strict=True):
        np.testing.assert_array_equal(getattr(first, name), values)


def test_it_runs_in_whatever_thread(winograd: Backend, guest: Path) -> None:
    """Loaded here and run elsewhere, one batch after another."""
    with ThreadPoolExecutor(1) as executor:
        answers = list(executor.map(lambda seed: winograd.forward(random_pixels(3, seed)), range(4)))
    for seed, answer in enumerate(answers):
        assert_same(answer, reference(guest, random_pixels(3, seed)))


def test_small_batches_are_left_to_onnx_runtime(guest: Path) -> None:
    """The plan says from where; without one, nothing is loaded."""
    backend = onnx.load(guest, "cpu", 1, winograd=True)
    calls: list[int] = []

    class Spy:
        def forward(self, pixels: Pixels) -> Outputs:
            calls.append(len(pixels))
            return reference(guest, pixels)

    backend.__dict__["_winograd"] = Spy()
    for plan in (Plan(), Plan(winograd_from=3)):
        backend.plan = plan
        for size in (1, 2, 3, 4):
            backend.forward(random_pixels(size))
    assert calls == [3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_networks_of_any_opset_are_run(tmp_path: Path, opset: int) -> None:
    """Reductions take their axes as an attribute or as an input."""
    directory = bundle_of(network(opset), tmp_path)
    backend = loaded(directory)
    assert backend.placement.winograd
    assert_same(backend.forward(random_pixels(5)), reference(directory, random_pixels(5)), 1e-5)


def test_a_network_it_answers_differently_is_refused(
    gelu: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """GELU is approximated, too coarsely for us: ONNX Runtime runs it all, as if there were nothing else."""
    with caplog.at_level(logging.INFO, "trueodds"):
        backend = loaded(gelu, tmp_path)
    assert "MNN does not run this network" in caplog.text
    assert backend.placement == onnx.load(gelu, "cpu", 1).placement
    assert_same(backend.forward(random_pixels(3)), reference(gelu, random_pixels(3)), 1e-5)
    (verdict,) = (tmp_path / "mnn").glob("*/verdict.json")
    assert "differ" in json.loads(verdict.read_text())["refused"]
    assert [path.name for path in verdict.parent.iterdir()] == ["verdict.json"]


def test_a_verdict_is_reached_once(guest: Path, gelu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good or bad, a second start converts nothing."""
    for directory in (guest, gelu):
        first = loaded(directory, tmp_path).placement
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nonexistent")
            assert loaded(directory, tmp_path).placement == first
            assert_same(loaded(directory, tmp_path).forward(random_pixels(2)), reference(directory, random_pixels(2)))


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([mnn.GRAPH, mnn.VERDICT]), where=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_a_damaged_cache_is_made_again(
    guest: Path, tmp_path_factory: pytest.TempPathFactory, name: str, where: float, cut: bool
) -> None:
    """Whatever is wrong with it: the answers are right, and so is the cache afterwards."""
    cache = tmp_path_factory.mktemp("cache")
    loaded(guest, cache)
    (path,) = (cache / "mnn").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    position = int(where * len(content))
    content[position] ^= 0xFF
    path.write_bytes(content[:position] if cut else content)
    for _ in range(2):
        assert_same(loaded(guest, cache).forward(random_pixels(2)), reference(guest, random_pixels(2)))
    assert mnn.read(path.parent).refused is None


def test_a_network_swapped_after_the_check_is_not_run(
    guest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is loaded at its first use: found changed by then, it is left, and ONNX Runtime answers."""
    backend = loaded(guest, tmp_path)
    (path,) = (tmp_path / "mnn").glob(f"*/{mnn.GRAPH}")
    path.write_bytes(path.read_bytes()[::-1])
    for _ in range(2):
        assert_same(backend.forward(random_pixels(2)), reference(guest, random_pixels(2)))
    assert caplog.text.count("has changed") == 1


def test_it_is_given_what_nobody_can_write(guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very bytes that were hashed, in a file without a name that is sealed."""
    import MNN.nn

    true_load, given = MNN.nn.load_module_from_file, []

    def spy(path: str, *arguments: object, **options: object) -> object:
        given.append(Path(path).read_bytes())
        with pytest.raises(OSError, match="Operation not permitted"):
            Path(path).write_bytes(b"swapped")
        return true_load(path, *arguments, **options)

    backend = loaded(guest, tmp_path)
    monkeypatch.setattr(MNN.nn, "load_module_from_file", spy)
    backend.forward(random_pixels(2))
    (path,) = (tmp_path / "mnn").glob(f"*/{mnn.GRAPH}")
    assert given == [path.read_bytes()]


def test_a_cache_that_cannot_be_written_does_no_harm(guest: Path, tmp_path: Path) -> None:
    """It is then converted at each start."""
    (tmp_path / "cache").touch()
    backend = loaded(guest, tmp_path / "cache")
    assert backend.placement.winograd
    assert_same(backend.forward(random_pixels(2)), reference(guest, random_pixels(2)))


def converted(directory: Path, file: str, answering: Path) -> mnn.MnnNetwork:
    """A file of a directory, made for MNN, where it answers as the bundle `answering` does."""
    return mnn.load(model_file(directory, file, None), 1, partial(reference, answering), lambda: (SIZE, SIZE), None)


def test_what_cannot_be_converted_is_refused(tmp_path: Path, guest: Path) -> None:
    """By a converter that crashes or is not there, with its exit status."""
    (tmp_path / "nonsense.onnx").write_bytes(b"no network")
    with pytest.raises(BackendError, match="cannot be converted"):
        converted(tmp_path, "nonsense.onnx", guest)


@pytest.mark.slow
def test_onnx_runtime_is_not_loaded_where_nothing_is_run_by_it(guest: Path, tmp_path: Path) -> None:
    """Once a network is converted, a process that runs it in batches of any size does without; and can fall back."""
    cache = tmp_path / "cache"
    loaded(guest, cache)
    program = f"""
import sys
from pathlib import Path
import numpy as np
from service.backends import Plan, onnx
backend = onnx.load(Path({str(guest)!r}), "cpu", 1, winograd=True, cache=Path({str(cache)!r}))
images = np.zeros((2, {SIZE}, {SIZE}, 3), np.uint8)
backend.plan = Plan(winograd_from=1)
by_winograd = backend.forward(images).logits
assert "onnxruntime" not in sys.modules
backend.plan = Plan()
assert np.allclose(backend.forward(images).logits, by_winograd, atol=1e-4)
assert "onnxruntime" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


@pytest.mark.slow
def test_a_network_that_crashes_it_is_refused(tmp_path: Path) -> None:
    """A mirror by a negative step kills the process it runs in, which is not this one."""
    model = network()
    whole = [np.array([value], np.int64) for value in (-1, -(2**31), 3, -1)]
    names = ["start", "end", "axis", "step"]
    model.graph.initializer.extend(map(numpy_helper.from_array, whole, names))
    model.graph.node.insert(0, helper.make_node("Slice", ["x", *names], ["mirrored"]))
    model.graph.node[1].input[0] = "mirrored"
    directory = bundle_of(model, tmp_path)
    with pytest.raises(BackendError, match="converted, it cannot be run"):
        converted(directory, onnx.FILE, directory)


@pytest.mark.parametrize("written", [b"", b'{"1": ', b"0", b"{}", bytes(range(256))])
def test_a_trial_that_ends_without_its_answers_is_none(
    guest: Path, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    """A library may end its process as if all were well."""
    monkeypatch.setattr(mnn, "TRY", f"import os, sys; os.write(int(sys.argv[5]), {written!r})")
    with pytest.raises(BackendError, match="answers cannot be read"):
        converted(guest, onnx.FILE, guest)


def test_nothing_is_printed_where_the_log_goes(guest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is for the access log's JSON; the library likes to tell of itself there."""
    loaded(guest, tmp_path).forward(random_pixels(2))
    print("a line")
    captured = capfd.readouterr()
    assert captured.out == "a line\n"


def test_its_tools_are_never_imported(winograd: Backend) -> None:
    """They would install a package and call their maker."""
    winograd.forward(random_pixels(1))
    assert "MNN.nn" in sys.modules
    assert "MNN.tools" not in sys.modules


@pytest.fixture
def answers_of(guest: Path, tmp_path: Path) -> dict[bool, Backend]:
    """The served backend with the setting on and off."""
    backends = {}
    for winograd in (True, False):
        chosen = Settings(bundles=guest.parent.parent, winograd=winograd)
        served = registry.load(chosen, Board(), lambda name, report: None, tmp_path / "cache")
        backends[winograd] = served.models["guest"].backend
        served.close()
    return backends


@pytest.mark.slow
def test_the_service_decides_by_measurement_and_setting(answers_of: dict[bool, Backend], guest: Path) -> None:
    """TRUEODDS_WINOGRAD=false leaves everything to ONNX Runtime; else the plan is what was measured."""
    on, off = answers_of[True], answers_of[False]
    assert on.placement.winograd
    assert (off.placement.winograd, off.plan.winograd_from) == ("", None)
    entry, _ = tuning.measure(on, bundle.load(guest), 0.01)
    assert set(entry.winograd_microseconds) == set(entry.microseconds)
    for backend in (on, off):
        for size in (1, 2, 7, 16):
            assert_same(backend.forward(random_pixels(size)), reference(guest, random_pixels(size)), 1e-5)
