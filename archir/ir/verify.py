"""Checks a graph: structure, types, stored tensors, interface. Runs after every edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.data import GraphData
from archir.ir.entry import faults
from archir.ir.execute import mode_argument
from archir.ir.limits import Room
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Argument, Node, Use, Value, leaves
from archir.ir.types import TensorType


def verify(graph: GraphData, *, touched: Collection[int] | None = None, base: GraphData | None = None) -> None:
    """Check that a graph is well formed.

    Args:
        graph: the graph.
        touched: ids of the nodes that may differ from those of a graph that was checked; all of them if not given.
        base: a graph whose inputs and outputs it must share the types of.

    Raises:
        GraphError: it is not; every violation is listed.
    """
    by_id = graph.structure.by_id
    nodes = [by_id[i] for i in (sorted(by_id) if touched is None else sorted(touched)) if i in by_id]
    problems = _structure(graph, nodes)
    if not problems:
        room = Room()
        for node in nodes:
            problems += _tensor(graph, node) if node.op == PARAMETER else []
            problems += _types(graph, node, room) if node.is_call else []
        problems += _names(graph)
        problems += faults(graph) if touched is None else []
        if base is not None:
            problems += _interface(graph, base)
    if problems:
        history = f"after {'; '.join(graph.history)}" if graph.history else ""
        raise GraphError(
            f"graph {graph.name} is malformed {history}".rstrip(),
            where="\n         ".join(problems),
        )


def _structure(graph: GraphData, nodes: Sequence[Node]) -> list[str]:
    """Return what is wrong with the operands of some nodes, their users, and the graph as a whole."""
    problems: list[str] = []
    by_id, users = graph.structure.by_id, graph.structure.users
    missing = {value.node for node in nodes for value in node.values if value.node not in by_id}
    if missing:
        return [f"node {i} is used but not defined" for i in sorted(missing)]
    outputs = sum(n.op == OUTPUT for n in by_id.values())
    if outputs != 1:
        problems.append(f"{outputs} output nodes instead of one")
    seen: set[Use] = set()
    for node in nodes:
        uses = [(use, value.node, value.index) for use, value in node.operands()]
        uses += [(use, node.id, index) for use, index in users.get(node.id, ())]
        for use, source, index in uses:
            if use not in seen and not 0 <= index < len(by_id[source].results):
                seen.add(use)
                user, maker = describe(by_id[use.node]), describe(by_id[source])
                problems.append(f"{user}: {use.argument} uses result {index} of {maker}")
        if node.op == PARAMETER and (node.parameter is None or node.id not in graph.tensors):
            problems.append(f"{describe(node)} has no tensor")
    try:
        _ = graph.order
    except GraphError as error:
        problems.append(f"a cycle: {error.where}")
    if not problems:
        counts = (len(graph.inputs), len(graph.output.arguments))
        signature = graph.signature
        numbers = [
            [i for tree in trees for i in leaves(tree) if isinstance(i, int)]
            for trees in ((signature.args, signature.kwargs), (signature.result,))
        ]
        for what, count, found in zip(("inputs", "outputs"), counts, numbers, strict=True):
            if any(not 0 <= i < count for i in found) or (what == "inputs" and sorted(found) != list(range(count))):
                problems.append(f"the signature numbers its {what} {found}, the graph has {count}")
    return problems


def _tensor(graph: GraphData, node: Node) -> list[str]:
    tensor, type_ = graph.tensors[node.id], node.results[0]
    found = TensorType(tensor.dtype, tuple(tensor.shape))
    return [] if found == type_ else [f"{describe(node)} is {found}, declared {type_}"]


def _types(graph: GraphData, node: Node, room: Room) -> list[str]:
    def typed(argument: Argument) -> object:
        if isinstance(argument, tuple):
            return tuple(map(typed, argument))
        return graph.type_of(argument) if isinstance(argument, Value) else argument

    try:
        operands = {k: typed(a) for k, a in node.arguments.items()}
        inferred = ops.infer_types(node.op, operands, graph.signature.guards, room)
    except ops.NotInferable:
        return []
    except GraphError as error:
        return [f"{describe(node)}: {error.where}: {error.why or error.what}"]
    if not ops.same_types(inferred, node.results, graph.signature.guards):
        got, want = (", ".join(map(str, t)) for t in (inferred, node.results))
        return [f"{describe(node)} makes {got}, declared {want}"]
    return []


def _names(graph: GraphData) -> list[str]:
    seen: dict[str, int] = {}
    problems: list[str] = []
    for node in graph.parameters:
        for name in node.parameter.names if node.parameter else ():
            if name in seen:
                problems.append(f"the name {name!r} is given to two tensors, nodes {seen[name]} and {node.id}")
            seen[name] = node.id
    problems += [f"{name!r} is a tensor and a module" for name in sorted(_modules(graph) & seen.keys())]
    inputs = Counter(node.name for node in graph.inputs)
    return problems + [f"two inputs are named {name!r}" for name, count in sorted(inputs.items()) if count > 1]


def _modules(graph: GraphData) -> set[str]:
    """Return the paths of all modules that hold a tensor or a flag."""
    waiting = {name.rpartition(".")[0] for n in graph.parameters if n.parameter for name in n.parameter.names}
    waiting |= {n.location.module for n in graph.calls if n.location and mode_argument(n) is not None}
    found: set[str] = set()
    while waiting:
        found |= waiting
        waiting = {path.rpartition(".")[0] for path in waiting} - found
    return found - {""}


def _interface(graph: GraphData, base: GraphData) -> list[str]:
    problems: list[str] = []
    old = [n.results[0] for n in base.inputs], [base.type_of(v) for _, v in base.output.operands()]
    new = [n.results[0] for n in graph.inputs], [graph.type_of(v) for _, v in graph.output.operands()]
    for what, before, after in zip(("input", "output"), old, new, strict=True):
        if before != after:
            problems.append(f"the {what}s were {', '.join(map(str, before))} and are {', '.join(map(str, after))}")
    return problems


def describe(node: Node) -> str:
    """Return a short text naming a node and where it comes from."""
    if node.op == PARAMETER and node.parameter:
        return f"@{node.parameter.names[0]}"
    if node.op == INPUT:
        return f"input {node.name}"
    return f"node {node.id} {node.op}" + (f" ({node.location})" if node.location else "")
