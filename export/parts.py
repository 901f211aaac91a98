"""An exported graph in two parts: the network, from pixels to logits, and the calibrated answer behind it.

What changes the network must not touch the answer: its named parameters are what the service checks.
"""

from collections.abc import Iterable

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, shape_inference

INPUT, LOGITS = "pixels", "logits"


def network_of(model: ModelProto) -> ModelProto:
    """From `pixels` to `logits` and, before these, whatever else of the network the answer is computed from."""
    nodes = _needed_for({LOGITS}, model.graph.node)
    made = {name for node in nodes for name in node.output}
    rest = _without(nodes, model)
    ends = [name for name in _inputs(rest) if name in made and name != LOGITS]
    return _model([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends], nodes, model)


def rejoined(network: ModelProto, model: ModelProto) -> ModelProto:
    """`model` with another network, which has the same ends, instead of its own."""
    rest = _without(_needed_for({LOGITS}, model.graph.node), model)
    used = set(_inputs(rest))
    joined = ModelProto()
    joined.CopyFrom(network)
    graph = joined.graph
    own = {tensor.name for tensor in graph.initializer}
    graph.node.extend(rest)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in used and t.name not in own)
    del graph.output[:], graph.value_info[:]
    graph.output.extend(model.graph.output)
    checker.check_model(joined)
    return joined


def standardised(network: ModelProto) -> str:
    """The name of what the pixels become before anything is made of them: less their mean, by their deviation."""
    (name,) = [node.output[0] for node in network.graph.node if node.op_type == "Div" and "std" in node.input]
    return str(name)


def _model(ends: list[ValueInfoProto], nodes: list[NodeProto], model: ModelProto) -> ModelProto:
    used = set(_inputs(nodes))
    logits = [output for output in model.graph.output if output.name == LOGITS]
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = helper.make_graph(nodes, "network", list(model.graph.input), [*ends, *logits], weights)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return shape_inference.infer_shapes(made)


def _needed_for(wanted: set[str], nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """In order; ONNX has each node after those it needs."""
    needed, found = set(wanted), []
    for node in reversed(list(nodes)):
        if needed & set(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _without(nodes: list[NodeProto], model: ModelProto) -> list[NodeProto]:
    made = {name for node in nodes for name in node.output}
    return [node for node in model.graph.node if not made & set(node.output)]


def _inputs(nodes: Iterable[NodeProto]) -> list[str]:
    return list(dict.fromkeys(name for node in nodes for name in node.input if name))
