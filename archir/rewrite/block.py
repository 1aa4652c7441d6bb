"""Blocks: modules of the user's program that make one value of another of the same type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import cast

from archir.ir import ops
from archir.ir.edit import Edit
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Argument, Location, Node, Parameter, Value, map_values
from archir.ir.types import ScalarType, TensorType
from archir.rewrite.miss import Miss


@dataclass(frozen=True)
class Block:
    """The calls of one module, its submodules included.

    Attributes:
        path: path of the module.
        calls: its calls, in order; numbers it computes of others from outside are not counted in.
        given: the values it reads from outside that have the type of its result, stored tensors left out.
        out: the one value of it that is used outside.
        stored: the tensors stored under its path.
    """

    path: str
    calls: tuple[Node, ...]
    given: tuple[Value, ...]
    out: Value
    stored: tuple[int, ...]

    def holds(self, name: str) -> bool:
        """Say whether the name of a tensor or the path of a module lies in the block."""
        return _lies_in(name, self.path)


def find_block(graph: Graph, path: str) -> Block | Miss:
    """Return the block at a module path, or why there is none."""
    return _block(graph, path, [n for n in graph.calls if path and _lies_in(_module(graph, n), path)])


def find_blocks(graph: Graph) -> Iterator[Block]:
    """Yield the blocks of a graph that stand for themselves, in order; of modules with the same calls the outermost.

    These are the numbered ones, those that add or multiply values themselves (no chains of blocks), and what passes
    have inserted.
    """
    within = _modules(graph)
    seen: set[tuple[int, ...]] = set()
    for path, calls in within.items():
        numbered = path.rpartition(".")[2].isdigit()
        joins = any(_module(graph, n) == path and n.op in ("aten.add.Tensor", "aten.mul.Tensor") for n in calls)
        key = tuple(n.id for n in calls)
        if key in seen or not (numbered or joins or _is_inserted(path, within)):
            continue
        found = _block(graph, path, calls)
        if isinstance(found, Block):
            seen.add(key)
            yield found


def find_inserted(graph: Graph) -> frozenset[str]:
    """Return the paths of the modules that passes have inserted."""
    within = _modules(graph)
    return frozenset(path for path in within if _is_inserted(path, within))


def _modules(graph: Graph) -> dict[str, list[Node]]:
    """Return the calls of every module, those of its submodules included, by its path."""
    within: dict[str, list[Node]] = {}
    for node in graph.calls:
        names = _module(graph, node).split(".")
        for i in range(len(names) if names[0] else 0):
            within.setdefault(".".join(names[: i + 1]), []).append(node)
    return within


def _is_inserted(path: str, within: Mapping[str, Sequence[Node]]) -> bool:
    """Say whether a module was inserted as a whole: passes made its calls, and others than those around them."""
    born = {n.born for n in within[path]}
    around = within.get(path.rpartition(".")[0], [])
    if "" in born or not all(n.born for n in around):
        return "" not in born
    inside = {n.id for n in within[path]}
    return not around or not born <= {n.born for n in around if n.id not in inside}


def _lies_in(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _module(graph: Graph, node: Node) -> str:
    """Return the path of the module a call belongs to: where it comes from, else that of its first stored tensor."""
    if node.location is not None:
        return node.location.module
    names = (names[0] for v in node.values if (names := graph.node(v.node).names))
    return next((name.rpartition(".")[0] for name in names), "")


def _block(graph: Graph, path: str, calls: Sequence[Node]) -> Block | Miss:
    inside = {n.id for n in calls}
    for node in calls:
        numbers = all(isinstance(t, ScalarType) for t in node.results)
        if numbers and not any(v.node in inside for v in node.values):
            inside.discard(node.id)
    kept = tuple(n for n in calls if n.id in inside)
    if not kept:
        return Miss(f"no call belongs to a module {path!r}")
    values = [v for n in kept for v in n.made]
    leaving = [v for v in values if any(u.node not in inside for u in graph.uses(v))]
    if len(leaving) != 1:
        return Miss(f"{len(leaving) or 'none'} of its results are used outside it", tuple(v.node for v in leaving))
    (out,) = leaving
    type_ = graph.type_of(out)
    read = dict.fromkeys(v for n in kept for v in n.values if v.node not in inside)
    given = tuple(v for v in read if graph.node(v.node).op != PARAMETER and graph.type_of(v) == type_)
    if not isinstance(type_, TensorType) or not given:
        return Miss("it is given no value of the type of its result", (out.node,))
    stored = (n for n in graph.parameters if any(_lies_in(name, path) for name in n.names))
    return Block(path, kept, given, out, tuple(n.id for n in stored))


def copy_block(edit: Edit, graph: Graph, block: Block, source: Value, zeros: frozenset[int]) -> Value:
    """Add a copy of a block that reads its result, with stored tensors of its own.

    What the block reads from outside is read by the copy too, and so are tensors that are stored outside it as well.

    Args:
        edit: an edit of the graph.
        graph: the graph.
        block: the block.
        source: what the copy has the result of the block in place of.
        zeros: stored tensors that are zero in the copy.

    Returns:
        The result of the copy.
    """
    path = _fresh_path(block.path, edit.paths())

    def renamed(name: str) -> str:
        return path + name[len(block.path) :]

    new: dict[Value, Value] = {source: block.out}

    def mapped(value: Value) -> Value:
        return new.get(value, value)

    for id_ in block.stored:
        known, tensor = graph.node(id_).parameter, graph.tensors[id_]
        assert known is not None
        names = tuple(renamed(name) for name in known.names if block.holds(name))
        if len(names) < len(known.names) and id_ not in zeros:
            continue
        tensor = tensor.new_zeros(tensor.shape) if id_ in zeros else tensor.clone()
        value = edit.add_parameter(names[0], tensor, kind=known.kind, location=_moved(graph.node(id_), block, path))
        edit.update(value.node, parameter=Parameter(names, known.kind, known.trainable, known.persistent))
        new[Value(id_)] = value
    for node in block.calls:
        arguments = {n: map_values(a, mapped) for n, a in node.arguments.items()}
        made = _call(edit, node.op, arguments, _moved(node, block, path))
        new |= {Value(node.id, i): Value(made.node, i) for i in range(len(node.results))}
    return new[block.out]


def _call(edit: Edit, op: str, arguments: dict[str, Argument], location: Location | None) -> Value:
    schema = ops.schema(op)
    keyword = {n: a for n, a in arguments.items() if n in schema.names[schema.keyword_from :]}
    positional = cast(list[Argument], ops.positional(op, arguments))
    return edit.call(op, *positional, location=location, **keyword)


def _moved(node: Node, block: Block, path: str) -> Location | None:
    place = node.location
    if place is None or not block.holds(place.module):
        return place
    return replace(place, module=path + place.module[len(block.path) :])


def _fresh_path(path: str, taken: Set[str]) -> str:
    """Return the path of a copy: the next free number in a numbered container, else the path with `_copy` appended."""
    container, _, last = path.rpartition(".")
    stem = f"{container}." if container else ""
    if last.isdigit():
        siblings = (p.removeprefix(stem) for p in taken if p.startswith(stem))
        return f"{stem}{1 + max(int(s) for s in siblings if s.isdigit())}"
    found, number = f"{path}_copy", 1
    while found in taken:
        found, number = f"{path}_copy{number + 1}", number + 1
    return found
