"""Writes an ONNX model in an older operator set than the exporter has.

An operator's older form is what `onnx.defs` says it was. A node is brought to it where that says the same: what the
older form has no attribute for stood at its default, and an input that was an attribute then is a stored constant. The
rest is refused with the operator's name. Forms that changed their meaning under the same signature are found by whoever
runs the file (`archir.emit.onnx.check`).
"""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper
from onnx.defs import OpSchema, SchemaError, get_schema

from archir.errors import EmitError

OLDEST, NATIVE, NEWEST = 13, 18, 25
"""Operator sets: the oldest one written, the oldest one the exporter itself writes, the newest it converts to.

Below 13 operators such as softmax and squeeze mean something else under the same name.
"""


def refuse(opset: int | None) -> None:
    """Refuse an operator set that cannot be written.

    Raises:
        EmitError: it is not one of those that can.
    """
    if opset is not None and (isinstance(opset, bool) or not OLDEST <= opset <= NEWEST):
        raise EmitError(
            f"ONNX operator set {opset} cannot be written",
            why=f"{OLDEST} to {NEWEST} can: the exporter has operators for {NATIVE} and above, and those before "
            f"{OLDEST} give other meanings to the same names",
            hint=f"give an opset from {OLDEST} to {NEWEST}, or none",
        )


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard operators in a model; 0 if it has none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def lower(model: ModelProto, opset: int) -> ModelProto:
    """Return a model in an older operator set.

    Args:
        model: the model.
        opset: the operator set.

    Raises:
        EmitError: an operator has no such form in it; all of them at once.
    """
    now = opset_of(model)
    made: ModelProto = inliner.inline_local_functions(model)
    _respell(made.graph, opset)
    problems = _lower(made.graph, now, opset)
    if problems:
        raise EmitError(
            f"ONNX operator set {opset} cannot be written",
            why="; ".join(dict.fromkeys(problems)),
            hint=f"give an opset from {NATIVE} to {NEWEST}, or none",
        )
    _drop_unused(made.graph)
    for imported in made.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = opset
    made.ir_version = min(made.ir_version, helper.find_min_ir_version_for(list(made.opset_import)))
    return made


def _respell(graph: GraphProto, opset: int) -> None:
    """Say in older operators what newer ones, or newer attributes, say: parts of a shape, hard swish."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _respell(attribute.g, opset)
        standard = node.domain in ("", "ai.onnx")
        if standard and node.op_type == "Shape" and node.attribute and opset < 15:
            nodes += _part_of_shape(node)
        elif standard and node.op_type == "HardSwish" and opset < 14:
            (x,), (y,) = node.input, node.output
            gate = helper.make_node("HardSigmoid", [x], [f"{y}_gate"], alpha=1 / 6, beta=0.5)
            nodes += [gate, helper.make_node("Mul", [x, f"{y}_gate"], [y], name=node.name)]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _part_of_shape(node: NodeProto) -> list[NodeProto]:
    """Return what takes a part of the whole shape of a tensor."""
    (y,) = node.output
    bounds = {"start": 0, "end": np.iinfo(np.int64).max} | {a.name: a.i for a in node.attribute}
    made = [helper.make_node("Shape", list(node.input), [f"{y}_whole"])]
    for name, bound in bounds.items():
        value = numpy_helper.from_array(np.array([bound], np.int64))
        made.append(helper.make_node("Constant", [], [f"{y}_{name}"], value=value))
    return [*made, helper.make_node("Slice", [f"{y}_whole", f"{y}_start", f"{y}_end"], [y], name=node.name)]


def _lower(graph: GraphProto, now: int, opset: int) -> list[str]:
    """Bring the nodes of a graph to their older forms, and return what cannot be."""
    constants = {t.name: t for t in graph.initializer}
    constants |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    problems: list[str] = []
    for node in graph.node:
        for attribute in node.attribute:
            problems += _lower(attribute.g, now, opset) if attribute.HasField("g") else []
        if node.domain not in ("", "ai.onnx"):
            continue
        new, old = _schema(node.op_type, now), _schema(node.op_type, opset)
        if old is None or new is None:
            problems.append(f"{node.op_type} is not in it")
        elif old.since_version != new.since_version:
            problem = _fit(node, new, old, constants)
            problems += [f"{node.op_type} {problem}"] if problem else []
    return problems


def _drop_unused(graph: GraphProto) -> None:
    """Drop the stored constants that have become attributes."""

    def used(part: GraphProto) -> set[str]:
        inner = {name for n in part.node for a in n.attribute if a.HasField("g") for name in used(a.g)}
        return inner | {name for n in part.node for name in n.input} | {o.name for o in part.output}

    names = used(graph)
    kept = [t for t in graph.initializer if t.name in names]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _schema(op: str, opset: int) -> OpSchema | None:
    try:
        return get_schema(op, opset, "")
    except SchemaError:
        return None


def _fit(node: NodeProto, new: OpSchema, old: OpSchema, constants: dict[str, TensorProto]) -> str:
    """Bring a node to an older form; return what it says that this has no words for, empty if nothing."""
    for attribute in list(node.attribute):
        if attribute.name not in old.attributes:
            if not _is_default(attribute, new) and not _says_nothing_more(node, attribute, constants):
                return f"has no {attribute.name} in it"
            node.attribute.remove(attribute)
    for position in reversed(range(len(node.input))):
        name = node.input[position]
        formal = new.inputs[min(position, len(new.inputs) - 1)].name
        if formal in {i.name for i in old.inputs} or (position < len(old.inputs) and formal not in old.attributes):
            continue
        if name and (formal not in old.attributes or name not in constants):
            return f"has no {formal} that is computed in it"
        if name:
            value = np.atleast_1d(numpy_helper.to_array(constants[name])).tolist()
            node.attribute.append(helper.make_attribute(formal, value))
        if position != len(node.input) - 1:
            return f"has no {formal} in it"
        del node.input[position]
    return ""


def _is_default(attribute: AttributeProto, schema: OpSchema) -> bool:
    known = schema.attributes.get(attribute.name)
    return known is not None and helper.get_attribute_value(attribute) == helper.get_attribute_value(
        known.default_value
    )


def _says_nothing_more(node: NodeProto, attribute: AttributeProto, constants: dict[str, TensorProto]) -> bool:
    """Say whether an attribute repeats what the node says without it."""
    match node.op_type, attribute.name:
        case "Split", "num_outputs":  # of an even split
            return bool(attribute.i == len(node.output))
        case "Reshape", "allowzero":  # a size of zero is one; where sizes are computed, only an empty batch has one
            shape = constants.get(node.input[1])
            return shape is None or 0 not in numpy_helper.to_array(shape)
    return False
