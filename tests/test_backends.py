"""service.backends: the same answers however they are run, and no harm from a cache."""

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import onnx as onnx_format
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import bundle
from service.backends import (
    OUTPUTS,
    Backend,
    Device,
    Outputs,
    buckets,
    external_data,
    onnx,
    onnx_gpu,
    optimized,
    torchscript,
)
from service.backends.processor import gpu_name, gpu_present, processor
from service.errors import BackendError
from service.files import sha256
from service.images import Pixels
from service.seal import model_file
from service.settings import BUNDLES

DIGITS = bundle.discover(BUNDLES)["digits"].directory
CIFAR10 = bundle.discover(BUNDLES)["cifar10"].directory
needs_gpu = pytest.mark.skipif(not gpu_present(), reason="needs an NVIDIA GPU")

AnyFile = st.sampled_from([optimized.GRAPH, optimized.WEIGHTS, optimized.DIGESTS])


def random_pixels(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


@cache
def reference_session(directory: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(directory / onnx.FILE, providers=["CPUExecutionProvider"])


def reference(directory: Path, pixels: Pixels) -> Outputs:
    """What ONNX Runtime answers when nothing is done to make it fast."""
    return Outputs(*reference_session(directory).run(OUTPUTS, {"pixels": pixels}))


def assert_same(left: Outputs, right: Outputs, tolerance: float = 1e-4) -> None:
    assert len(left) == len(right)
    for name in ("logits", "probabilities", "energy", "ood_score"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def digits() -> Backend:
    return onnx.load(DIGITS, "cpu", 1, wide_threads=2)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), alone=st.booleans(), seed=st.integers(0, 9))
def test_narrow_and_wide_answer_as_the_bundle_does(digits: Backend, count: int, alone: bool, seed: int) -> None:
    """Optimised ahead of time and on any number of threads, the graph gives the answers of model.onnx."""
    pixels = random_pixels(count, seed)
    assert_same(digits.forward(pixels, alone=alone), reference(DIGITS, pixels))


def test_a_heavier_network_answers_the_same_both_ways(tmp_path: Path) -> None:
    """With convolutions that are reordered, and with weights mapped from a cache."""
    backend = onnx.load(CIFAR10, "cpu", 1, wide_threads=2, cache=tmp_path)
    pixels = random_pixels(5)
    for alone in (False, True):
        assert_same(backend.forward(pixels, alone=alone), reference(CIFAR10, pixels))


def test_the_wide_way_exists_only_where_it_is_wider() -> None:
    """With no more threads than the narrow one it is not made, and nothing can ask for it."""
    backend = onnx.load(DIGITS, "cpu", 2, wide_threads=2)
    assert backend.placement.wide_threads == 0


def test_a_cache_is_used_again_and_is_the_owners_alone(tmp_path: Path) -> None:
    """The second start writes nothing; nobody else may write what will be served."""
    onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    kept = kept_folder(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    again = onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    assert not kept.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    assert_same(again.forward(random_pixels(3)), reference(DIGITS, random_pixels(3)))


def kept_folder(cache: Path) -> Path:
    (kept,) = (cache / "onnx").iterdir()
    return kept


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(name=AnyFile, where=st.floats(0, 1, exclude_max=True), how=st.sampled_from(["flip", "cut", "remove"]))
def test_a_damaged_cache_is_made_again(
    tmp_path_factory: pytest.TempPathFactory, name: str, where: float, how: str
) -> None:
    """Whatever byte of whatever file is wrong: the answers are right, and so is the cache afterwards."""
    cache = tmp_path_factory.mktemp("cache")
    onnx.load(DIGITS, "cpu", 1, cache=cache)
    path = kept_folder(cache) / name
    content = bytearray(path.read_bytes())
    position = int(where * len(content))
    content[position] ^= 0xFF
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(content if how == "flip" else content[:position])
    for _ in range(2):
        backend = onnx.load(DIGITS, "cpu", 1, cache=cache)
        assert_same(backend.forward(random_pixels(2)), reference(DIGITS, random_pixels(2)))
    optimized.read(kept_folder(cache))


@pytest.mark.parametrize("spoil", [lambda path: path.touch(), lambda path: (path.mkdir(), (path / "onnx").touch())])
def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    """The service starts all the same, and says why nothing is kept."""
    spoil(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        backend = onnx.load(DIGITS, "cpu", 1, wide_threads=2, cache=tmp_path / "cache")
    assert "no graphs are kept" in caplog.text
    assert_same(backend.forward(random_pixels(2), alone=True), reference(DIGITS, random_pixels(2)))


@pytest.mark.parametrize("name", [optimized.GRAPH, optimized.DIGESTS])
def test_a_graph_swapped_after_the_check_is_not_run(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that were hashed are those that run, whatever lies in the cache by then."""
    onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    onnx.load(CIFAR10, "cpu", 1, cache=tmp_path / "other")
    path, other = kept_folder(tmp_path) / name, kept_folder(tmp_path / "other") / name

    def racing(content: bytes) -> str:
        found = sha256(content)
        path.write_bytes(other.read_bytes())
        return found

    monkeypatch.setattr(optimized, "sha256", racing)
    backend = onnx.load(DIGITS, "cpu", 1, wide_threads=2, cache=tmp_path)
    for alone in (False, True):
        assert_same(backend.forward(random_pixels(2), alone=alone), reference(DIGITS, random_pixels(2)))


@pytest.mark.parametrize("name", [optimized.GRAPH, optimized.WEIGHTS, optimized.DIGESTS])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_links_in_a_cache_are_not_followed(tmp_path: Path, name: str, link: Callable[[Path, Path], None]) -> None:
    """The same bytes by a link are made again: who holds the other name could change them."""
    onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    path = kept_folder(tmp_path) / name
    path.rename(tmp_path / name)
    link(path, tmp_path / name)
    backend = onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    assert_same(backend.forward(random_pixels(2)), reference(DIGITS, random_pixels(2)))
    assert not path.is_symlink()
    assert path.stat().st_nlink == 1


def test_a_cache_is_trusted_whatever_the_umask(tmp_path: Path) -> None:
    """Files are made private, not by luck: the second start makes nothing again."""
    before = os.umask(0)
    try:
        onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in kept_folder(tmp_path).iterdir()} == {0o600}
    optimized.read(kept_folder(tmp_path))


def test_a_cache_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    """What is in such a folder is made again."""
    onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    kept_folder(tmp_path).chmod(0o777)
    onnx.load(DIGITS, "cpu", 1, cache=tmp_path)
    assert not kept_folder(tmp_path).stat().st_mode & stat.S_IWOTH


def test_starting_together_leaves_one_whole_cache(tmp_path: Path) -> None:
    """Workers that all find nothing all make it; one wins and nothing is left lying about."""
    with ThreadPoolExecutor(4) as executor:
        backends = list(executor.map(lambda _: onnx.load(DIGITS, "cpu", 1, cache=tmp_path), range(4)))
    optimized.read(kept_folder(tmp_path))
    for backend in backends:
        assert_same(backend.forward(random_pixels(2)), reference(DIGITS, random_pixels(2)))


def test_without_room_for_a_temporary_file_the_bundle_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only system without /tmp serves too, only with more memory."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with caplog.at_level(logging.WARNING):
        backend = onnx.load(DIGITS, "cpu", 1, wide_threads=2)
    assert "No space left" in caplog.text
    assert backend.placement.wide_threads == 0
    assert_same(backend.forward(random_pixels(2), alone=True), reference(DIGITS, random_pixels(2)))


def test_external_weights_are_found_as_onnx_finds_them(tmp_path: Path) -> None:
    """The small reader agrees with the onnx package on names, types, shapes and bytes."""
    with optimized.optimized(model_file(CIFAR10, onnx.FILE, None), tmp_path) as graph:
        model = onnx_format.load(graph.folder / optimized.GRAPH)
    expected = {tensor.name: onnx_format.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert graph.weights
    for name, array in graph.weights.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype


@given(content=st.binary(max_size=200))
def test_the_reader_refuses_nonsense(content: bytes) -> None:
    """Any bytes give tensors or one of the errors a damaged cache is known by; nothing else, and no endless loop."""
    with suppress(ValueError, IndexError, KeyError):
        external_data.external_tensors(content)
    with suppress(ValueError, IndexError):
        list(external_data.external_locations(content))


@given(images=st.integers(1, 10_000))
def test_a_bucket_is_the_next_power_of_two(images: int) -> None:
    """It holds the images and is less than twice as large."""
    size = buckets.bucket_size(images)
    assert size.bit_count() == 1
    assert images <= size < 2 * images


class Echo:
    """A bucket whose logits are the first bytes of its pixels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.pixels: Pixels = np.zeros(shape, np.uint8)

    def run(self) -> Outputs:
        column = self.pixels[:, 0, 0, :1].astype(np.float32)
        return Outputs(column, column, column > 0, column[:, 0], column[:, 0] > 0, column[:, 0])


@given(counts=st.lists(st.integers(1, 600), min_size=1, max_size=6))
def test_padding_keeps_every_image_its_answer(counts: list[int]) -> None:
    """In order and alone with its answer, whatever an earlier batch left in the bucket; one bucket a power of two."""
    recorded: list[int] = []

    def record(shape: tuple[int, ...]) -> Echo:
        recorded.append(shape[0])
        return Echo(shape)

    padded = buckets.Buckets(record)
    for seed, count in enumerate(counts):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
        outputs = padded.forward(pixels)
        np.testing.assert_array_equal(outputs.logits[:, 0], pixels[:, 0, 0, 0])
    assert len(recorded) == len(set(recorded))
    assert max(recorded) <= buckets.LARGEST


def test_bound_buffers_answer_as_the_session_does() -> None:
    """IO binding with fixed buffers, on the CPU in place of a GPU: padding, reuse and answers of their own."""
    session = reference_session(DIGITS)
    padded = buckets.Buckets(lambda shape: onnx_gpu.BoundBucket(session, shape, "cpu", -1))
    first, second = random_pixels(3, seed=1), random_pixels(4, seed=2)
    answers = padded.forward(first)
    assert_same(padded.forward(second), reference(DIGITS, second))
    assert_same(answers, reference(DIGITS, first))


@pytest.mark.parametrize(
    ("device", "available", "gpu", "chosen"),
    [
        ("auto", ["cpu"], False, "cpu"),
        ("auto", ["cpu"], True, "cpu"),
        ("auto", ["cuda", "cpu"], False, "cpu"),
        ("auto", ["tensorrt", "cuda", "cpu"], True, "cuda"),
        ("cpu", ["cuda", "cpu"], True, "cpu"),
        ("cuda", ["cuda", "cpu"], True, "cuda"),
        ("tensorrt", ["tensorrt", "cuda", "cpu"], True, "tensorrt"),
    ],
)
def test_the_device_is_the_one_asked_for_or_the_best_there_is(
    device: Device, available: list[str], gpu: bool, chosen: str
) -> None:
    """`auto` takes a GPU that is both there and supported; TensorRT, slow to start, only when asked for."""
    assert onnx.choose(device, lambda: [onnx.PROVIDERS[name] for name in available], gpu) == chosen


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="the GPU build")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_named(device: Device) -> None:
    """With the remedy, rather than an answer from somewhere else."""
    with pytest.raises(BackendError, match=rf"no {onnx.PROVIDERS[device]} here.*TRUEODDS_DEVICE=cpu"):
        onnx.load(DIGITS, device, 1)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="the GPU build")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_session_that_fell_back_by_itself_is_refused() -> None:
    """ONNX Runtime quietly takes the CPU where CUDA does not start; here that is an error."""
    with pytest.raises(BackendError, match="could not start its CUDAExecutionProvider"):
        onnx_gpu.GpuBackend(model_file(DIGITS, onnx.FILE, None), "cuda")


def test_gpu_options(tmp_path: Path) -> None:
    """Exact arithmetic everywhere; graphs on CUDA alone; TensorRT's engines are kept where there is a cache."""
    ((name, cuda),) = onnx_gpu.providers("cuda", graphs=True, cache=None)
    assert (name, cuda["enable_cuda_graph"], cuda["use_tf32"]) == (onnx_gpu.CUDA, "1", "0")
    (first, tensorrt), (second, beside) = onnx_gpu.providers("tensorrt", graphs=False, cache=tmp_path)
    assert (first, second, beside["enable_cuda_graph"]) == (onnx_gpu.TENSORRT, onnx_gpu.CUDA, "0")
    assert tensorrt["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert onnx_gpu.providers("tensorrt", graphs=False, cache=None)[0] == (onnx_gpu.TENSORRT, {})


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("load", [onnx.load, torchscript.load])
def test_a_gpu_answers_as_the_cpu_does(load: Callable[[Path, Device, int], Backend]) -> None:
    """For every bucket, padded or full, recorded or replayed."""
    backend = load(CIFAR10, "cuda", 1)
    for count in (1, 3, 16, 16, 5, 1, 300):
        pixels = random_pixels(count, seed=count)
        assert_same(backend.forward(pixels), reference(CIFAR10, pixels), tolerance=1e-3)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 20), alone=st.booleans())
def test_torchscript_answers_as_onnx_does(script: Backend, count: int, alone: bool) -> None:
    """Frozen and optimised for oneDNN, on any number of threads."""
    pixels = random_pixels(count, seed=count)
    assert_same(script.forward(pixels, alone=alone), reference(DIGITS, pixels))


@pytest.fixture(scope="module")
def script() -> Backend:
    return torchscript.load(DIGITS, "cpu", 1, wide_threads=2)


def test_torchscript_has_no_tensorrt() -> None:
    """And says what has."""
    with pytest.raises(BackendError, match="TRUEODDS_BACKEND=onnx"):
        torchscript.load(DIGITS, "tensorrt", 1)


@pytest.mark.skipif(gpu_present(), reason="there is a GPU")
def test_torchscript_without_a_gpu_refuses_cuda() -> None:
    with pytest.raises(BackendError, match="torch finds no GPU"):
        torchscript.load(DIGITS, "cuda", 1)


def test_processors_are_told_apart(tmp_path: Path) -> None:
    """By name, numbers and instructions; two that are alike are one."""
    text = "model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\nflags\t\t: {}\n\nx: y\n"
    found = []
    for number, flags in enumerate(("avx2 fma", "fma avx2", "avx2 avx512f fma")):
        path = tmp_path / str(number)
        path.write_text(text.format(flags))
        found.append(processor(path))
    assert found[0].name == "AMD EPYC (family 25, model 17, stepping 1)"
    assert found[0] == found[1] != found[2]
    assert processor(tmp_path / "none").name


def test_gpus_are_named_by_their_driver(tmp_path: Path) -> None:
    """As /proc has it; by a general name where it says nothing."""
    assert gpu_name(tmp_path) == "NVIDIA GPU"
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 5\n")
    assert gpu_name(tmp_path) == "NVIDIA L4"
    assert not gpu_present(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert gpu_present(tmp_path)
