"""The arguments and results of a model as its `forward` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from archir.emit.code import identifier, literal, quoted
from archir.emit.names import unique
from archir.ir.graph import Graph
from archir.ir.node import Argument, Constant, Leaf, Tree, Value


@dataclass(frozen=True)
class Frame:
    """What surrounds the statements of the outermost module.

    Attributes:
        names: the variable of each graph input.
        prelude: statements that unpack nested arguments.
        arguments: names of the arguments, with those unpacked.
        outputs: the outputs of the graph.
        result: template of what is returned, `{0}` standing for the first output.
        returns: its annotation.
    """

    names: Mapping[Value, str]
    prelude: tuple[str, ...]
    arguments: tuple[str, ...]
    outputs: tuple[Argument, ...]
    result: str
    returns: str


def frame(graph: Graph) -> Frame:
    """Return the arguments of a model and the statements that unpack them.

    Nested arguments are unpacked; a constant argument keeps its place and is checked.
    """
    taken: list[str] = []

    def fresh(hint: str) -> str:
        taken.append(unique(identifier(hint), taken))
        return taken[-1]

    slots: list[tuple[str, Leaf]] = []
    for i, leaf in enumerate(graph.signature.args.children):
        slots.append((fresh(_hint(graph, leaf) or f"arg{i}"), leaf))
    keywords = list(zip(graph.signature.kwargs.keys, graph.signature.kwargs.children, strict=True))
    slots += [(fresh(k), leaf) for k, leaf in sorted(keywords, key=lambda slot: isinstance(slot[1], Constant))]
    optional = len(slots)
    while optional and isinstance(slots[optional - 1][1], Constant):
        optional -= 1
    names: dict[Value, str] = {}
    prelude: list[str] = []
    arguments: list[str] = []
    for i, (name, leaf) in enumerate(slots):
        if isinstance(leaf, Constant):
            arguments.append(f"{name}={literal(leaf.value)}" if i >= optional else f"{name}: object")
            same = "is" if leaf.value is None or isinstance(leaf.value, bool) else "=="
            prelude.append(f"assert {name} {same} {literal(leaf.value)}")
        elif isinstance(leaf, Tree):
            arguments.append(f"{name}: {leaf.kind}")
            prelude += _unpack(graph, leaf, name, names, taken)
        else:
            arguments.append(name)
            names[Value(graph.inputs[leaf].id)] = name
    outputs = tuple(graph.output.arguments.values())
    leaf = graph.signature.result
    return Frame(names, tuple(prelude), tuple(arguments), outputs, _result(leaf), _returns(leaf))


def _hint(graph: Graph, leaf: Leaf) -> str:
    """Return the name of an argument: what the names of the inputs in it begin with."""
    if isinstance(leaf, int):
        return graph.inputs[leaf].name
    if isinstance(leaf, Constant):
        return ""
    stems = {_hint(graph, child).rpartition("_")[0] for child in leaf.children if not isinstance(child, Constant)}
    return next(iter(stems)) if len(stems) == 1 else ""


def _unpack(graph: Graph, tree: Tree, source: str, names: dict[Value, str], taken: list[str]) -> list[str]:
    keys: list[str | int] = list(tree.keys) if tree.kind == "dict" else list(range(len(tree.children)))
    lines: list[str] = []
    for key, child in zip(keys, tree.children, strict=True):
        part = f"{source}[{quoted(key) if isinstance(key, str) else key}]"
        if isinstance(child, Tree):
            lines += _unpack(graph, child, part, names, taken)
        elif isinstance(child, Constant):
            lines.append(f"assert {part} == {literal(child.value)}")
        else:
            taken.append(unique(identifier(graph.inputs[child].name), taken))
            names[Value(graph.inputs[child].id)] = taken[-1]
            lines.append(f"{taken[-1]} = {part}")
    return lines


def _result(leaf: Leaf, outermost: bool = True) -> str:
    """Return a template of what a model returns, `{0}` standing for the first output of the graph."""
    if isinstance(leaf, Constant):
        return literal(leaf.value).replace("{", "{{").replace("}", "}}")
    if isinstance(leaf, int):
        return f"{{{leaf}}}"
    parts = [_result(child, outermost=False) for child in leaf.children]
    if leaf.kind == "dict":
        return "{{" + ", ".join(f"{quoted(k)}: {p}" for k, p in zip(leaf.keys, parts, strict=True)) + "}}"
    if leaf.kind == "list":
        return f"[{', '.join(parts)}]"
    text = f"{parts[0]}," if len(parts) == 1 else ", ".join(parts)
    return text if outermost and len(parts) > 1 else f"({text})"


def _returns(leaf: Leaf) -> str:
    """Return the annotation of what a model returns."""
    if isinstance(leaf, int):
        return "Tensor"
    if isinstance(leaf, Constant):
        return "object"
    plain = leaf.kind != "dict" and all(isinstance(child, int) for child in leaf.children)
    return leaf.kind if not plain else "tuple[Tensor, ...]" if leaf.kind == "tuple" else "list[Tensor]"
