"""The layouts a program can be written in, from the one that reads best to the one that says any program."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from archir.emit.classes import Classes
from archir.emit.code import class_identifier, quoted, wrap
from archir.emit.plain import plain_class
from archir.emit.scopes import Planner, Program
from archir.emit.signature import frame
from archir.emit.tensors import constant
from archir.emit.vocabulary import Vocabulary
from archir.ir.graph import Graph
from archir.ir.layers import Layers, find_layers
from archir.ir.node import Node, Value

LAYOUTS = ("modules", "flat", "plain")
"""A class for each kind of module; one `forward` for all of them; every call by its full name."""


@dataclass(frozen=True)
class Draft:
    """What would be written.

    Attributes:
        text: the Python source.
        tensors: what is stored beside it, by name.
    """

    text: str
    tensors: Mapping[str, torch.Tensor]


def draft(graph: Graph, layout: str, name: str = "net") -> Draft:
    """Write a graph in one layout.

    Args:
        graph: the program.
        layout: one of `LAYOUTS`.
        name: name of the file with the weights, without its ending.

    Raises:
        EmitError: the layout cannot say the program, or what it says is not in the vocabulary.
    """
    root = class_identifier(graph.name)
    lean = without_idle(graph)
    layers = find_layers(lean) if layout != "plain" else Layers({}, {})
    if layout == "plain":
        body = plain_class(lean, root)
    else:
        program = Program(lean, layers)
        body = Classes(program, Planner(program, nested=layout == "modules").plan(), root, frame(lean)).write()
    loading = _load_function(graph, root)
    code = f"{body}\n\n\n{loading}\n"
    text = "\n\n".join([_docstring(graph, name), _imports(code)]) + f"\n\n\n{code}"
    Vocabulary(graph).program(text)
    return Draft(text, _stored(graph, layers))


def _imports(code: str) -> str:
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    standard = [f"import {name}" for name in ("math", "operator") if name in names]
    third = ["import torch"] if "torch" in names else []
    third += ["import torch.nn.functional as F"] if "F" in names else []
    used = [name for name in ("Tensor", "nn") if name in names]
    third += ["from safetensors.torch import load_file", f"from torch import {', '.join(used)}"]
    return "\n".join([*standard, "from pathlib import Path", "", *third])


def _stored(graph: Graph, layers: Layers) -> dict[str, torch.Tensor]:
    """Return the tensors of the file: each under its first name, and those that only the layers have."""
    found: dict[str, torch.Tensor] = {}
    for node in graph.parameters:
        tensor = graph.tensors[node.id]
        if node.parameter and (node.parameter.persistent or constant(tensor) is None):
            found[node.parameter.names[0]] = tensor.detach().cpu().contiguous().clone()
    for module in layers.layers.values():
        found |= {f"{module.path}.{field}": torch.tensor(0) for field in module.extra}
    return found


def _load_function(graph: Graph, root: str) -> str:
    hidden: list[str] = []
    ties: list[str] = []
    for node in graph.parameters:
        assert node.parameter is not None
        first, *others = node.parameter.names
        if node.parameter.persistent:
            ties += [f"    state[{quoted(other)}] = state[{quoted(first)}]" for other in others]
        elif constant(graph.tensors[node.id]) is None:
            hidden.append(first)
    lines = [
        f"def load() -> {root}:",
        '    """Return the network in eval mode, with the weights stored beside this file."""',
    ]
    lines += [f"    net = {root}()", '    state = load_file(Path(__file__).with_suffix(".safetensors"))', *ties]
    if hidden:
        lines += wrap(f"for name in [{', '.join(map(quoted, hidden))}]:", 4)
        lines += ["        net.get_buffer(name).copy_(state.pop(name))"]
    lines += ["    net.load_state_dict(state)", "    return net.eval()"]
    return "\n".join(lines)


def without_idle(graph: Graph) -> Graph:
    """Return a graph without the calls that return their operand as it is, such as `x[:]`."""
    idle = [n for n in graph.calls if _is_idle(graph, n)]
    if not idle:
        return graph
    with graph.edit(by="emit") as edit:
        for node in reversed(idle):
            source = edit.node(node.id).argument("self")
            assert isinstance(source, Value)
            edit.replace_uses(Value(node.id), source)
            edit.remove(node.id)
    return edit.graph.with_history(*graph.history)


def _is_idle(graph: Graph, node: Node) -> bool:
    if node.op == "aten.slice.Tensor":
        start, end, step = (node.argument(n) for n in ("start", "end", "step"))
        return start in (None, 0) and step == 1 and (end is None or (isinstance(end, int) and end >= 2**31))
    if node.op == "aten.constant_pad_nd.default" or node.op == "aten.pad.default":
        pad = node.argument("pad")
        return isinstance(pad, tuple) and set(pad) == {0}
    if node.op == "aten.detach.default":
        source = node.argument("self")
        stored = graph.node(source.node).parameter if isinstance(source, Value) else None
        return stored is not None and stored.kind != "parameter"
    return node.op == "aten.alias.default"


def _docstring(graph: Graph, name: str) -> str:
    lines = [f"A neural network of {graph.parameter_count:,} parameters; weights in {name}.safetensors."]
    if graph.history:
        lines += ["", f"Made from {graph.name} by", *(f"    {spec}" for spec in graph.history), ""]
    return '"""' + "\n".join(map(_printable, lines)) + '"""'


def _printable(text: str) -> str:
    """Return a line of a docstring: no quote ends it, no character is an escape or cannot be printed."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\\", "\\\\"))
    return shown.replace('"""', "'''")
