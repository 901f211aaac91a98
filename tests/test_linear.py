"""service.linear: each rule goes back through its operator as ONNX Runtime computes it, and only where it is linear."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.backends.nodes import nodes
from service.linear import RULES, Array, Call

slowly = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**32 - 1)
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


def ran(operator: str, inputs: Mapping[str, Array], which: int = 0, **attributes: Any) -> Call:
    """One operator, run by ONNX Runtime; `which` of the inputs is gone back to."""
    named = {name: np.asarray(value) for name, value in inputs.items()}
    graph = helper.make_graph(
        [helper.make_node(operator, list(named), ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info(name, KINDS[value.dtype], value.shape) for name, value in named.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    (made,) = onnxruntime.InferenceSession(content, options).run(None, named)
    (node,) = nodes(content)
    return Call(node, {**named, "y": made}, which)


def check(operator: str, inputs: Mapping[str, Array], which: int = 0, **attributes: Any) -> Call:
    """What comes back, times what was given, is what came back times what was made, but for what was made of zeros."""
    call = ran(operator, inputs, which, **attributes)
    zeros = {name: np.zeros_like(value) if i == which else value for i, (name, value) in enumerate(inputs.items())}
    of_zeros = ran(operator, zeros, which, **attributes).made
    back = np.random.default_rng(5).normal(size=call.made.shape)
    found = RULES[operator](call, back)
    assert found is not None
    assert found.shape == call.given.shape
    expected = (back * (call.made.astype(float) - of_zeros)).sum()
    scale = 1 + np.abs(back).sum() * np.abs(call.made).max()
    assert (found * call.given).sum() == pytest.approx(expected, abs=1e-5 * scale)
    return call


def noise(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Of a pooling layer: kernel, stride and dilation, and a border less wide than the kernel."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    found: dict[str, Any] = {"kernel_shape": kernel, "strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))}
    automatic = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if automatic == "NOTSET":
        found["pads"] = [draw(st.integers(0, size - 1)) for size in (*kernel, *kernel)]
        found["ceil_mode"] = draw(st.integers(0, 1))
    else:
        found["auto_pad"] = automatic
        # Where steps are wider than the kernel, the runtime refuses to find a border.
        found["strides"] = tuple(map(min, found["strides"], kernel))
    return found


@slowly
@given(SEEDS, windows(), st.integers(1, 2))
def test_a_maximum_goes_back_to_where_it_was_taken(seed: int, window: dict[str, Any], dilation: int) -> None:
    """For every kernel, stride, border and dilation, but one of which the runtime makes something of its own."""
    assume(window.get("auto_pad") != "SAME_LOWER" or dilation == 1)
    check("MaxPool", {"x": noise(seed, 2, 3, 8, 9)}, **window, dilations=(dilation, dilation))


def test_a_border_that_the_runtime_puts_elsewhere_is_not_gone_through() -> None:
    """So that a graph with one is explained otherwise."""
    holes: dict[str, Any] = {"kernel_shape": (2, 2), "dilations": (2, 2), "auto_pad": "SAME_LOWER"}
    call = ran("MaxPool", {"x": noise(0, 2, 3, 8, 9)}, **holes)
    assert RULES["MaxPool"](call, np.ones(call.made.shape)) is None


@slowly
@given(SEEDS, windows(), st.integers(0, 1))
def test_a_mean_goes_back_to_all_it_was_taken_of(seed: int, window: dict[str, Any], with_border: int) -> None:
    """Whether the border counts or not."""
    if with_border:
        # What a window that reaches beyond the border divides by, runtimes do not agree on.
        window["ceil_mode"] = 0
    check("AveragePool", {"x": noise(seed, 2, 3, 8, 9)}, **window, count_include_pad=with_border)


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
def test_pooling_over_all_places_goes_back_to_them(operator: str) -> None:
    """Several images, several channels."""
    check(operator, {"x": noise(1, 2, 3, 4, 5)})


@slowly
@given(SEEDS, st.booleans(), st.sampled_from([1.0, 0.5, -2.0]))
def test_a_linear_layer_goes_back_by_its_weights(seed: int, transposed: bool, alpha: float) -> None:
    """Either way round they lie, with a factor, and beside a bias."""
    weights = noise(seed + 1, 4, 7) if transposed else noise(seed + 1, 7, 4)
    check("Gemm", {"x": noise(seed, 2, 7), "w": weights, "b": noise(3, 4)}, transB=int(transposed), alpha=alpha)
    check("MatMul", {"x": noise(seed, 2, 7), "w": noise(seed, 7, 4)})


@slowly
@given(SEEDS, st.tuples(st.integers(0, 1), st.integers(0, 1)), st.integers(1, 2))
def test_a_convolution_of_a_whole_map_goes_back_by_its_weights(
    seed: int, border: tuple[int, int], dilation: int
) -> None:
    """Beside a bias, and with weights that fall on the border."""
    kernel = 3, 2
    rows, columns = ((size - 1) * dilation + 1 - 2 * before for size, before in zip(kernel, border, strict=True))
    if min(rows, columns) < 1:
        return
    inputs = {"x": noise(seed, 2, 3, rows, columns), "w": noise(seed + 1, 5, 3, *kernel), "b": noise(2, 5)}
    check("Conv", inputs, pads=(*border, *border), dilations=(dilation, dilation))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[0], [2, 3], [-1], [1, 3]])
def test_sums_and_means_over_axes_go_back_to_each(axes: list[int], keepdims: int) -> None:
    """Axes given as an input or as an attribute, by the version of the operator."""
    x = noise(1, 2, 3, 4, 5)
    check("ReduceMean", {"x": x}, axes=axes, keepdims=keepdims)
    check("ReduceSum", {"x": x, "axes": np.array(axes)}, keepdims=keepdims)


def test_a_mean_over_nothing_in_particular_is_over_all() -> None:
    """No axes are all axes."""
    check("ReduceMean", {"x": noise(1, 2, 3)}, keepdims=1)


def test_shapes_are_given_back() -> None:
    """A flattened map is a map again, a turned one turned back."""
    x = noise(1, 2, 3, 4, 5)
    check("Flatten", {"x": x})
    check("Reshape", {"x": x, "shape": np.array([2, -1])})
    check("Unsqueeze", {"x": x, "axes": np.array([0])})
    check("Squeeze", {"x": noise(1, 2, 3, 1, 1)})
    check("Transpose", {"x": x}, perm=[0, 2, 3, 1])
    check("Transpose", {"x": x})
    check("Identity", {"x": x})


def test_constants_scale_and_shift() -> None:
    """A product and a quotient by a constant, a sum and a difference with one."""
    x, constant = noise(1, 2, 3), np.array([2.0, 3.0, 4.0], np.float32)
    for which, names in ((0, ("x", "c")), (1, ("c", "x"))):
        given = dict(zip(names, (x, constant) if which == 0 else (constant, x), strict=True))
        check("Mul", given, which)
        check("Add", given, which)
        check("Sub", given, which)
    check("Div", {"x": x, "c": constant})


@pytest.mark.parametrize(
    ("operator", "inputs", "which", "attributes"),
    [
        ("Div", {"c": noise(1, 2, 3), "x": noise(2, 2, 3)}, 1, {}),
        ("Mul", {"x": noise(1, 1, 3), "c": noise(2, 2, 3)}, 0, {}),
        ("Add", {"x": noise(1, 3), "c": noise(2, 2, 3)}, 0, {}),
        ("Gemm", {"w": noise(1, 2, 3), "x": noise(2, 3, 4)}, 1, {}),
        ("Gemm", {"x": noise(1, 3, 2), "w": noise(2, 3, 4)}, 0, {"transA": 1}),
        ("MatMul", {"w": noise(1, 2, 3), "x": noise(2, 3, 4)}, 1, {}),
        ("MatMul", {"x": noise(1, 2, 4, 3), "w": noise(2, 2, 3, 4)}, 0, {}),
        ("Conv", {"x": noise(1, 1, 2, 4, 4), "w": noise(2, 3, 2, 3, 3)}, 0, {}),
        ("Conv", {"x": noise(1, 1, 2, 3, 3), "w": noise(2, 2, 1, 3, 3)}, 0, {"group": 2}),
    ],
)
def test_what_is_not_known_to_be_linear_is_not_gone_through(
    operator: str, inputs: dict[str, Array], which: int, attributes: dict[str, Any]
) -> None:
    """Rather no map than a wrong one."""
    call = ran(operator, inputs, which, **attributes)
    assert RULES[operator](call, np.ones(call.made.shape)) is None
