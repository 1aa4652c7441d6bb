"""Checks a graph: structure, types, stored tensors, interface. Runs after every edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.data import GraphData
from archir.ir.execute import mode_argument
from archir.ir.input_checks import faults
from archir.ir.limits import Room
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Argument, Node, Use, Value, leaves
from archir.ir.patch import GraphPatch
from archir.ir.types import TensorType


def verify(graph: GraphData) -> None:
    """Check that a graph is well formed.

    Raises:
        GraphError: it is not; every violation is listed.
    """
    by_id = graph.structure.by_id
    nodes = [by_id[i] for i in sorted(by_id)]
    outputs = sum(n.op == OUTPUT for n in nodes)
    problems = _operands(graph, nodes, outputs)
    if not problems:
        try:
            _ = graph.order
        except GraphError as error:
            problems.append(f"a cycle: {error.where}")
    problems = problems or _interface(graph)
    if not problems:
        problems = [*_contents(graph, nodes), *_names(graph), *faults(graph)]
    _report(graph, problems)


def verify_patch(patch: GraphPatch[GraphData], rewired: Collection[int]) -> None:
    """Check that a graph is well formed, as the one it was made from is: what was not touched is not looked at again.

    Args:
        patch: what was changed.
        rewired: ids of the nodes whose operands differ.

    Raises:
        GraphError: it is not, or its inputs and outputs have other types than before; every violation is listed.
    """
    graph, base = patch.after, patch.before
    nodes = [graph.node(i) for i in sorted(patch.touched)]
    problems = _operands(graph, nodes, int(base.structure.output not in patch.removed))
    if not problems and (cycle := _new_cycle(patch, rewired)):
        problems.append(f"a cycle: through {', '.join(describe(graph.node(i)) for i in cycle)}")
    if not problems:
        if patch.removed & {n.id for n in base.inputs} or graph.output.arguments.keys() != base.output.arguments.keys():
            problems = _interface(graph)
        problems += _contents(graph, patch.affected)
        problems += _names(graph) if _may_clash(patch) else []
        problems += _boundary(graph, base)
    _report(graph, problems)


def _report(graph: GraphData, problems: Sequence[str]) -> None:
    """Raise an error if there are problems."""
    if problems:
        history = f"after {'; '.join(graph.history)}" if graph.history else ""
        raise GraphError(
            f"graph {graph.name} is malformed {history}".rstrip(),
            where="\n         ".join(problems),
        )


def _operands(graph: GraphData, nodes: Sequence[Node], outputs: int) -> list[str]:
    """Return what is wrong with the operands of some nodes, with their users, and with the number of outputs."""
    problems: list[str] = []
    by_id, users = graph.structure.by_id, graph.structure.users
    missing = {value.node for node in nodes for value in node.values if value.node not in by_id}
    if missing:
        return [f"node {i} is used but not defined" for i in sorted(missing)]
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
        if node.op in (INPUT, PARAMETER) and len(node.results) != 1:
            problems.append(f"{describe(node)} has {len(node.results)} types instead of one")
    return problems


def _new_cycle(patch: GraphPatch[GraphData], rewired: Collection[int]) -> list[int]:
    """Return the nodes of a cycle, none if there is none.

    A cycle goes through a node whose operands have changed. Upstream of a node that has not been touched the
    position falls, so that nothing before the first of them need be looked at.
    """
    old, position = patch.before.structure, patch.before.structure.position
    first = min((position[i] for i in rewired if i in old.by_id), default=len(position))
    done: set[int] = set()
    for start in sorted(rewired):
        path: dict[int, Iterator[int]] = {}
        found = start
        while True:
            if found in path:
                return list(path)[list(path).index(found) :]
            if found not in done and not (found in old.by_id and position[found] < first):
                path[found] = iter([v.node for v in patch.after.node(found).values])
            following = None
            while path and following is None:
                last = next(reversed(path))
                following = next(path[last], None)
                if following is None:
                    done.add(last)
                    del path[last]
            if following is None:
                break
            found = following
    return []


def _may_clash(patch: GraphPatch[GraphData]) -> bool:
    """Say whether a name that is new may be that of another tensor or a module, so that all have to be looked at."""
    old = patch.before.structure
    new = [n for n in patch.added if n.op == PARAMETER or n.is_call]
    new += [n for n in patch.changed if n.is_call or n.parameter != old.by_id[n.id].parameter]
    names = [name for n in new if n.parameter for name in n.parameter.names]
    modules = {name.rpartition(".")[0] for name in names} | {n.location.module for n in new if n.location}
    modules |= {path[:i] for path in modules for i, sign in enumerate(path) if sign == "."}
    fresh = set(names)
    taken = old.names.keys() & fresh or old.paths & fresh or old.names.keys() & modules or modules & fresh
    return len(fresh) < len(names) or bool(taken)


def _interface(graph: GraphData) -> list[str]:
    """Return what is wrong with how the signature numbers inputs and outputs."""
    problems: list[str] = []
    counts, signature = (len(graph.inputs), len(graph.output.arguments)), graph.signature
    numbers = [
        [i for tree in trees for i in leaves(tree) if isinstance(i, int)]
        for trees in ((signature.args, signature.kwargs), (signature.result,))
    ]
    for what, count, found in zip(("inputs", "outputs"), counts, numbers, strict=True):
        if any(not 0 <= i < count for i in found) or (what == "inputs" and sorted(found) != list(range(count))):
            problems.append(f"the signature numbers its {what} {found}, the graph has {count}")
    return problems


def _contents(graph: GraphData, nodes: Sequence[Node]) -> list[str]:
    """Return what is wrong with the stored tensors and the result types of some nodes."""
    problems, room = list[str](), Room()
    for node in nodes:
        problems += _tensor(graph, node) if node.op == PARAMETER else []
        problems += _types(graph, node, room) if node.is_call else []
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


def _boundary(graph: GraphData, base: GraphData) -> list[str]:
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
