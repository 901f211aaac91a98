"""service.activation: maps that sum to the logit, of graphs that have them, and of no others."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from service.activation import ActivationMaps, NoActivationMapError
from service.heat import Grid
from service.images import InputSpec, Pixels
from tests.conftest import committed
from tests.test_occlusion import spec_of

slowly = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
CHANNELS, CLASSES = 6, 4
# Operators: what each reads, what it writes, and its attributes.
End = list[tuple[str, list[str], str, dict[str, Any]]]
# Ends of networks: from `map` (1, CHANNELS, 8, 12) to `logits`, with the width of the features.
ENDS: dict[str, tuple[End, int]] = {
    "mean over all places": (
        [
            ("GlobalAveragePool", ["map"], "pooled", {}),
            ("Flatten", ["pooled"], "features", {}),
            ("Gemm", ["features", "head", "bias"], "logits", {"transB": 1}),
        ],
        CHANNELS,
    ),
    "maximum over all places": (
        [
            ("MaxPool", ["map"], "pooled", {"kernel_shape": [8, 12]}),
            ("Flatten", ["pooled"], "features", {}),
            ("Gemm", ["features", "head", "bias"], "scaled", {"transB": 1}),
            ("Mul", ["scaled", "factor"], "logits", {}),
        ],
        CHANNELS,
    ),
    "maxima over parts": (
        [
            ("MaxPool", ["map"], "pooled", {"kernel_shape": [4, 3], "strides": [4, 3]}),
            ("Flatten", ["pooled"], "features", {}),
            ("Gemm", ["features", "head", "bias"], "logits", {"transB": 1}),
        ],
        CHANNELS * 2 * 4,
    ),
    "nothing but a linear layer": (
        [
            ("Flatten", ["map"], "features", {}),
            ("Transpose", ["head"], "turned", {}),
            ("MatMul", ["features", "turned"], "scores", {}),
            ("Add", ["scores", "bias"], "logits", {}),
        ],
        CHANNELS * 8 * 12,
    ),
    "mean and maximum": (
        [
            ("GlobalAveragePool", ["map"], "mean", {}),
            ("GlobalMaxPool", ["map"], "most", {}),
            ("Add", ["mean", "most"], "pooled", {}),
            ("Flatten", ["pooled"], "features", {}),
            ("Gemm", ["features", "head", "bias"], "logits", {"transB": 1}),
        ],
        CHANNELS,
    ),
}


def network(end: End, width: int, seed: int, offset: float = 1) -> bytes:
    """A convolution of stride 4 and kernel 5 × 5 with ReLU over (N, 32, 48, 3), and this end.

    Of random weights; those of the convolution's bias times `offset`.
    """
    generator = np.random.default_rng(seed)

    def weights(name: str, *shape: int, times: float = 1) -> TensorProto:
        return numpy_helper.from_array((times * generator.normal(size=shape)).astype(np.float32), name)

    start: End = [
        ("Transpose", ["pixels"], "turned_pixels", {"perm": [0, 3, 1, 2]}),
        ("Cast", ["turned_pixels"], "levels", {"to": TensorProto.FLOAT}),
        ("Mul", ["levels", "shade"], "image", {}),
        ("Conv", ["image", "filters", "offsets"], "convolved", {"strides": [4, 4], "pads": [2, 2, 1, 1]}),
        ("Relu", ["convolved"], "map", {}),
    ]
    made: list[NodeProto] = [helper.make_node(op, given, [out], **told) for op, given, out, told in start + end]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 32, 48, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [
            weights("filters", CHANNELS, 3, 5, 5),
            weights("offsets", CHANNELS, times=offset),
            weights("head", CLASSES, width),
            weights("bias", CLASSES),
            numpy_helper.from_array(np.array(1 / 256, np.float32), "factor"),
            numpy_helper.from_array(np.array(1 / 255, np.float32), "shade"),
            weights("second", CLASSES, CLASSES),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def image(spec: InputSpec, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (spec.height, spec.width, 3), np.uint8)


@slowly
@given(st.sampled_from(sorted(ENDS)), st.integers(0, 2**32 - 1), st.integers(0, CLASSES - 1))
def test_the_map_sums_to_the_logit(end: str, seed: int, index: int) -> None:
    """Of random weights, for every way to end; what is left is the bias of the class, and nothing else."""
    spec = spec_of(32, 48)
    content = network(*ENDS[end], seed)
    found = ActivationMaps(content, spec).of(image(spec, seed), index)
    bias = np.random.default_rng(seed)
    for shape in ((CHANNELS, 3, 5, 5), (CHANNELS,), (CLASSES, ENDS[end][1])):
        bias.normal(size=shape)
    expected = bias.normal(size=CLASSES)[index] / (256 if end == "maximum over all places" else 1)
    assert found.heat.values.sum() + found.rest == pytest.approx(found.logit)
    assert found.rest == pytest.approx(expected, abs=1e-4 * max(1, abs(found.logit)))


@pytest.mark.parametrize("end", sorted(ENDS))
def test_the_map_is_where_something_was_seen(end: str) -> None:
    """A lone bright spot on black is all that the map shows, about as far as a filter reaches."""
    spec = spec_of(32, 48)
    pixels = np.zeros((32, 48, 3), np.uint8)
    maps = ActivationMaps(network(*ENDS[end], 3, offset=0), spec)
    assert not maps.of(pixels, 1).heat.values.any()
    pixels[9:12, 29:32] = 255
    heat = maps.of(pixels, 1).heat.values
    assert np.abs(heat).max() > 0
    rows, columns = np.nonzero(heat)
    assert np.abs(rows - 10).max() <= 8
    assert np.abs(columns - 30).max() <= 8


def test_places_lie_where_the_graph_says() -> None:
    """Kernel 5, stride 4 and a border of 2 before: every fourth pixel, from the first on."""
    maps = ActivationMaps(network(*ENDS["mean over all places"], 0), spec_of(32, 48))
    assert maps.grids == {"map": Grid((0.0, 0.0), (4.0, 4.0))}


@pytest.mark.parametrize(
    "end",
    [
        # Two linear layers with a ReLU between.
        (
            [
                ("GlobalAveragePool", ["map"], "pooled", {}),
                ("Flatten", ["pooled"], "features", {}),
                ("Gemm", ["features", "head"], "hidden", {"transB": 1}),
                ("Relu", ["hidden"], "shown", {}),
                ("MatMul", ["shown", "second"], "logits", {}),
            ],
            CHANNELS,
        ),
        # No map, but the image itself.
        (
            [
                ("GlobalAveragePool", ["image"], "pooled", {}),
                ("Flatten", ["pooled"], "features", {}),
                ("Gemm", ["features", "head"], "logits", {"transB": 1}),
            ],
            3,
        ),
        # A product of what was seen with itself.
        (
            [
                ("GlobalAveragePool", ["map"], "pooled", {}),
                ("Mul", ["pooled", "pooled"], "squared", {}),
                ("Flatten", ["squared"], "features", {}),
                ("Gemm", ["features", "head"], "logits", {"transB": 1}),
            ],
            CHANNELS,
        ),
    ],
)
def test_a_network_that_does_not_end_so_has_none(
    end: tuple[End, int],
) -> None:
    """Rather than one that is wrong."""
    with pytest.raises(NoActivationMapError, match="no sum over the places"):
        ActivationMaps(network(*end, 0), spec_of(32, 48))


def test_places_that_were_moved_about_are_none() -> None:
    """A map that was enlarged lies elsewhere than its layers say."""
    end: End = [
        ("DepthToSpace", ["map"], "moved", {"blocksize": 1}),
        ("Relu", ["moved"], "shown", {}),
        ("GlobalAveragePool", ["shown"], "pooled", {}),
        ("Flatten", ["pooled"], "features", {}),
        ("Gemm", ["features", "head"], "logits", {"transB": 1}),
    ]
    with pytest.raises(NoActivationMapError, match="DepthToSpace"):
        ActivationMaps(network(end, CHANNELS, 0), spec_of(32, 48))


def test_a_border_that_is_put_around_moves_the_places() -> None:
    """And so does one that is cut off."""
    cut: End = [
        ("Pad", ["map", "border"], "wide", {}),
        ("Relu", ["wide"], "shown", {}),
        ("GlobalAveragePool", ["shown"], "pooled", {}),
        ("Flatten", ["pooled"], "features", {}),
        ("Gemm", ["features", "head"], "logits", {"transB": 1}),
    ]
    constant = helper.make_tensor("value", TensorProto.INT64, [8], [0, 0, 1, 2, 0, 0, 1, 2])
    end = [("Constant", [], "border", {"value": constant}), *cut]
    maps = ActivationMaps(network(end, CHANNELS, 0), spec_of(32, 48))
    assert maps.grids == {"shown": Grid((-4.0, -8.0), (4.0, 4.0))}


def test_what_is_no_graph_is_an_error() -> None:
    """Of the kinds that are told."""
    with pytest.raises((ValueError, IndexError)):
        ActivationMaps(b"\x07no graph", spec_of(32, 48))


def test_the_served_photo_network_has_both_of_its_looks() -> None:
    """Of the image and of its mirror image; together they are the logit, and the network has no bias."""
    spec = InputSpec("photo", 32, 32, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
    maps = ActivationMaps((committed("cifar10") / "model.onnx").read_bytes(), spec)
    assert sorted(look for looks in maps.mirrored.values() for look in looks) == [False, True]
    pixels = image(spec, 0)
    for index in range(10):
        one, mirrored = maps.of(pixels, index), maps.of(np.ascontiguousarray(pixels[:, ::-1]), index)
        assert one.logit == pytest.approx(one.heat.values.sum(), abs=1e-4)
        assert one.rest == pytest.approx(0, abs=1e-4)
        # Looking twice, the network cannot tell an image from its mirror image: neither can the map.
        assert mirrored.heat.values == pytest.approx(one.heat.values[:, ::-1], abs=1e-6)
