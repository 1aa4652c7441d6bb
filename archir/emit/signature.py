"""The arguments and results of a model as its `forward` writes them."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archir.emit.code import identifier, is_name, literal, quoted
from archir.emit.names import RESERVED, unique
from archir.ir.graph import Graph
from archir.ir.guards import whole
from archir.ir.input_checks import Source, condition, expression, sources
from archir.ir.node import Argument, Constant, Leaf, Tree, Value, fold
from archir.ir.types import Size, TensorType, symbols_of


@dataclass(frozen=True)
class Frame:
    """What surrounds the statements of the outermost module.

    Attributes:
        names: the variable of each graph input.
        prelude: statements that unpack nested arguments, and refuse sizes the network is not for.
        arguments: names of the arguments, with those unpacked.
        outputs: the outputs of the graph.
        result: what is returned; leaves number the outputs.
        returns: its annotation.
    """

    names: Mapping[Value, str]
    prelude: tuple[str, ...]
    arguments: tuple[str, ...]
    outputs: tuple[Argument, ...]
    result: Leaf
    returns: str


def frame(graph: Graph) -> Frame:
    """Return the arguments of a model and the statements that unpack them.

    Nested arguments are unpacked; a constant argument keeps its place and is checked. A keyword that cannot be the name
    of an argument, because the source uses it itself or because Python does not take it, is read from `**keywords`.
    """
    keywords = dict(zip(graph.signature.kwargs.keys, graph.signature.kwargs.children, strict=True))
    kept = {k: leaf for k, leaf in keywords.items() if is_name(k) and k not in RESERVED}
    taken: list[str] = list(kept)

    def fresh(hint: str) -> str:
        taken.append(unique(identifier(hint), taken))
        return taken[-1]

    slots: list[tuple[str, Leaf]] = []
    for i, leaf in enumerate(graph.signature.args.children):
        slots.append((fresh(_hint(graph, leaf) or f"arg{i}"), leaf))
    slots += sorted(kept.items(), key=lambda slot: isinstance(slot[1], Constant))
    optional = len(slots)
    while optional and isinstance(slots[optional - 1][1], Constant):
        optional -= 1
    names: dict[Value, str] = {}
    prelude: list[str] = []
    arguments: list[str] = []
    for i, (name, leaf) in enumerate(slots):
        if isinstance(leaf, Constant):
            arguments.append(f"{name}={literal(leaf.value)}" if i >= optional else f"{name}: object")
            prelude.append(_assertion(name, leaf))
        elif isinstance(leaf, Tree):
            arguments.append(f"{name}: {leaf.kind}")
            prelude += _unpack(graph, leaf, name, names, taken)
        else:
            arguments.append(name)
            names[Value(graph.inputs[leaf].id)] = name
    others = fresh("keywords") if len(kept) < len(keywords) else ""
    arguments += [f"**{others}: object"] if others else []
    more = [key for key in keywords if key not in kept]
    prelude += _count(others, len(more), more) if others else []
    for key, leaf in keywords.items():
        if key not in kept:
            prelude += _part(graph, leaf, f"{others}[{quoted(key)}]", key, names, taken)
    prelude += _checks(graph, names)
    outputs = tuple(graph.output.arguments.values())
    leaf = graph.signature.result
    return Frame(names, tuple(prelude), tuple(arguments), outputs, leaf, _returns(leaf))


@dataclass(frozen=True)
class Requirement:
    """What sizes of the inputs have to satisfy for a graph to be right.

    Attributes:
        text: the source of it.
        left: a size, or the place where one stands.
        relation: how they are related.
        right: the other size.
    """

    text: str
    left: Size | Source
    relation: str
    right: Size


def requirements(graph: Graph, names: Mapping[Value, str], *, static: bool) -> list[Requirement]:
    """Return what the sizes of the inputs have to satisfy for a graph to be right.

    These are sizes that several inputs share, a first axis of one size, and the guards of the graph; any other size
    that differs is a matter of the layers.

    Args:
        graph: the graph.
        names: what each input is called.
        static: whether a first axis of one size counts.
    """
    types = [node.results[0] for node in graph.inputs]
    found = sources(types)
    read = {symbol: _read(names[Value(graph.inputs[s.input].id)], s) for symbol, s in found.items()}
    known: list[Requirement] = []
    for i, node in enumerate(graph.inputs):
        type_ = node.results[0]
        for axis, size in enumerate(type_.shape) if isinstance(type_, TensorType) else ():
            here = Source(i, axis)
            if here in found.values() or not (symbols_of(size) or (static and axis == 0)):
                continue
            if symbols_of(size) <= found.keys():
                told = ast.unparse(expression(size, read))
                own = f"{names[Value(node.id)]}.size({axis})"
                known.append(Requirement(f"{own} == {told}", here, "==", size))
    for guard in graph.signature.guards:
        left, right = whole(guard)
        known.append(Requirement(ast.unparse(condition(guard, read)), left, guard.relation, right))
    return known


def _checks(graph: Graph, names: Mapping[Value, str]) -> list[str]:
    """Return statements that refuse sizes a graph is not right for."""
    lines: list[str] = []
    for test in (found.text for found in requirements(graph, names, static=True)):
        lines.append(f"if not ({test}):")
        lines.append(f"    raise ValueError({quoted('the network is for inputs with ' + test)})")
    return lines


def _read(name: str, source: Source) -> ast.expr:
    found: ast.expr = ast.Name(name, ast.Load())
    if source.axis is not None:
        found = ast.Call(ast.Attribute(found, "size", ast.Load()), [ast.Constant(source.axis)], [])
    if source.offset:
        found = ast.BinOp(found, ast.Sub(), ast.Constant(source.offset))
    return ast.BinOp(found, ast.FloorDiv(), ast.Constant(source.factor)) if source.factor != 1 else found


def _hint(graph: Graph, leaf: Leaf) -> str:
    """Return the name of an argument: what the names of the inputs in it begin with."""
    if isinstance(leaf, int):
        return graph.inputs[leaf].name
    if isinstance(leaf, Constant):
        return ""
    stems = {_hint(graph, child).rpartition("_")[0] for child in leaf.children if not isinstance(child, Constant)}
    return next(iter(stems)) if len(stems) == 1 else ""


def _unpack(graph: Graph, tree: Tree, source: str, names: dict[Value, str], taken: list[str]) -> list[str]:
    lines = _count(source, len(tree.children), tree.keys)
    for key, child in tree.items():
        lines += _part(graph, child, f"{source}[{quoted(key) if isinstance(key, str) else key}]", "", names, taken)
    return lines


def _count(source: str, count: int, keys: Sequence[str]) -> list[str]:
    """Return statements that refuse more or fewer parts than there were; a key that is not there is found when read."""
    told = f"the keys {', '.join(keys)}" if keys else f"{count} part{'s' if count != 1 else ''}"
    return [
        f"if len({source}) != {count}:",
        f"    raise ValueError({quoted(f'the network is for {source} with {told}')})",
    ]


def _part(graph: Graph, leaf: Leaf, source: str, hint: str, names: dict[Value, str], taken: list[str]) -> list[str]:
    """Return the statements that take one thing out of what was handed in."""
    if isinstance(leaf, Tree):
        return _unpack(graph, leaf, source, names, taken)
    if isinstance(leaf, Constant):
        return [_assertion(source, leaf)]
    taken.append(unique(identifier(hint or graph.inputs[leaf].name), taken))
    names[Value(graph.inputs[leaf].id)] = taken[-1]
    return [f"{taken[-1]} = {source}"]


def _assertion(source: str, constant: Constant) -> str:
    same = "is" if constant.value is None or isinstance(constant.value, bool) else "=="
    return f"assert {source} {same} {literal(constant.value)}"


def result_source(leaf: Leaf, outputs: Sequence[str]) -> str:
    """Return the source of what a model returns.

    Args:
        leaf: its nesting.
        outputs: the source of each output of the graph.
    """

    def join(tree: Tree, parts: list[str]) -> str:
        if tree.kind == "dict":
            return f"{{{', '.join(f'{quoted(k)}: {p}' for k, p in zip(tree.keys, parts, strict=True))}}}"
        inside = f"{parts[0]}," if tree.kind == "tuple" and len(parts) == 1 else ", ".join(parts)
        return f"[{inside}]" if tree.kind == "list" else f"({inside})"

    text = fold(leaf, lambda end: literal(end.value) if isinstance(end, Constant) else outputs[end], join)
    several = isinstance(leaf, Tree) and leaf.kind == "tuple" and len(leaf.children) > 1
    return text[1:-1] if several else text  # the parentheses of an outermost tuple are not needed


def _returns(leaf: Leaf) -> str:
    """Return the annotation of what a model returns."""
    if isinstance(leaf, int):
        return "Tensor"
    if isinstance(leaf, Constant):
        return "object"
    plain = leaf.kind != "dict" and all(isinstance(child, int) for child in leaf.children)
    return leaf.kind if not plain else "tuple[Tensor, ...]" if leaf.kind == "tuple" else "list[Tensor]"
