"""Takes the names out of a program before the exporter of torch gets it, and puts them into what comes back.

The exporter makes source of what it is given and runs it, with names of tensors, modules and inputs as they are. So it
is given none: what it reads is called `t0`, `x0` and the like, and the names of the program are data that never become
text of a program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace

from onnx import GraphProto, ModelProto, helper

from archir.ir.graph import Graph
from archir.ir.node import INPUT, Node, Signature, Tree, Value


def results(graph: Graph) -> list[Value]:
    """Return the outputs that are computed, constants left out."""
    return [value for value in graph.output.arguments.values() if isinstance(value, Value)]


def _made(graph: Graph) -> list[Value]:
    """Return the outputs that are no inputs, each once."""
    return [value for value in dict.fromkeys(results(graph)) if graph.node(value.node).op != INPUT]


def neutral(graph: Graph) -> Graph:
    """Return a program that computes the same in eval mode and says nothing of its own.

    Stored tensors are `t0`, `t1`, ... in the module itself, inputs `x0`, `x1`, ..., both in the order of the graph;
    arguments and results are tensors whatever their nesting was; inputs are not returned, and nothing is twice; no node
    knows where it comes from.
    """
    args = Tree("tuple", tuple(range(len(graph.inputs))))
    outputs = list(graph.output.arguments.values())
    result = Tree("tuple", tuple(outputs.index(value) for value in _made(graph)))
    signature = Signature(args, Tree("dict"), result, graph.signature.guards, sizes=graph.signature.sizes)
    inputs = {node.id: f"x{i}" for i, node in enumerate(graph.inputs)}
    tensors = {node.id: f"t{i}" for i, node in enumerate(graph.parameters)}

    def bare(node: Node) -> Node:
        stored = node.parameter and replace(node.parameter, names=(tensors[node.id],))
        return replace(node, name=inputs[node.id] if node.op == INPUT else "", parameter=stored, location=None, born="")

    return Graph("network", [bare(node) for node in graph.nodes], graph.tensors, signature)


def restore_outputs(graph: Graph, model: ModelProto) -> list[str]:
    """Let a model made of a bare program return what the program does; no output is an input or a stored tensor itself.

    Returns:
        The names of the outputs, in order.
    """
    taken = set(value_names(model.graph))
    others = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    given = {Value(node.id): info for node, info in zip(graph.inputs, model.graph.input, strict=True)}
    made = dict(zip(_made(graph), model.graph.output, strict=True))
    found = {value: deepcopy(info) for value, info in (given | made).items()}
    del model.graph.output[:]
    for value in results(graph):
        output = model.graph.output.add()
        output.CopyFrom(found[value])
        if output.name in others:
            output.name = free("y", taken)
            taken.add(output.name)
            model.graph.node.append(helper.make_node("Identity", [found[value].name], [output.name], name=output.name))
        others.add(output.name)
    return [output.name for output in model.graph.output]


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Give values of a model other names; a value that has such a name already gives way.

    Args:
        model: the model; changed in place.
        names: the new name of each value by its old one, no two the same.
    """
    present = set(value_names(model.graph))
    new = {old: name for old, name in names.items() if old in present}
    taken = present | set(new.values())
    for name in sorted((present - new.keys()) & set(new.values())):
        new[name] = free(name, taken)
        taken.add(new[name])
    for part in graphs_in(model.graph):
        for value in (*part.input, *part.output, *part.value_info, *part.initializer):
            value.name = new.get(value.name, value.name)
        for node in part.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]


def free(name: str, taken: Collection[str]) -> str:
    """Return a name no value has yet: this one, or this one with a number."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def value_names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of all values of an ONNX graph and of the graphs in it, some of them several times."""
    for part in graphs_in(graph):
        yield from (value.name for value in (*part.input, *part.output, *part.value_info, *part.initializer))
        yield from (name for node in part.node for name in (*node.input, *node.output) if name)


def graphs_in(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield an ONNX graph and the graphs in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_in(inner)
