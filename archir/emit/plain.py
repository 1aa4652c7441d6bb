"""The layout that says any program: one class, every call by its full name, every tensor by its path.

It is what is left where no other layout computes what the graph does. Nothing in it is recovered: it follows the graph
call by call, and no layer is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from archir.emit.arguments import cumulative, full_name
from archir.emit.code import Code, literal, plain, quoted, wrap
from archir.emit.names import unique
from archir.emit.scopes import parent
from archir.emit.signature import frame, result_source
from archir.emit.tensors import declaration
from archir.ir.execute import mode_argument, returns_sequence
from archir.ir.graph import Graph
from archir.ir.layer_forms import batch_counter
from archir.ir.node import Node, Value
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.types import TensorType


def plain_class(graph: Graph, name: str) -> str:
    """Return the source of a class that makes the calls of a graph one after the other.

    Args:
        graph: the program.
        name: name of the class.
    """
    head = frame(graph)
    writer = _Calls(graph, dict(head.names))
    given = [a if ":" in a or "=" in a else f"{a}: Tensor" for a in head.arguments]
    body = [*head.prelude, *writer.lines()]
    outputs = [writer.value(v, graph.output).text if isinstance(v, Value) else literal(v) for v in head.outputs]
    body.append(f"return {result_source(head.result, outputs)}")
    lines = [f"class {name}(nn.Module):", "    def __init__(self) -> None:", "        super().__init__()"]
    lines += [broken for line in _stores(graph) for broken in wrap(plain(line), 8)]
    lines += ["", *wrap(f"def forward({', '.join(['self', *given])}) -> {head.returns}:", 4)]
    for line in map(plain, body):
        indent = len(line) - len(line.lstrip())
        lines += wrap(line.lstrip(), 8 + indent)
    return "\n".join(lines)


def _stores(graph: Graph) -> Iterator[str]:
    """Yield the statements that make the modules and the tensors in them."""
    paths = {parent(n) for node in graph.parameters for n in node.names}
    paths |= {_module(node) for node in graph.calls if mode_argument(node) is not None}
    parts = (path.split(".") for path in paths if path)
    made = {".".join(names[: i + 1]) for names in parts for i in range(len(names))}
    for path in sorted(made, key=lambda p: (p.count("."), p)):
        yield f"{_owner(parent(path))}.add_module({quoted(path.rpartition('.')[2])}, nn.Module())"
    for node in graph.parameters:
        assert node.parameter is not None
        first, *others = node.parameter.names
        field = first.rpartition(".")[2]
        yield _owner(parent(first)) + declaration(node, graph.tensors[node.id], field, False).removeprefix("self")
        for other in others:
            field, source = quoted(other.rpartition(".")[2]), _tensor(node)
            if node.parameter.kind == "parameter":
                yield f"{_owner(parent(other))}.register_parameter({field}, {source})"
            else:
                keep = "" if node.parameter.persistent else ", persistent=False"
                yield f"{_owner(parent(other))}.register_buffer({field}, {source}{keep})"


def _owner(path: str) -> str:
    return f"self.get_submodule({quoted(path)})" if path else "self"


def _tensor(node: Node) -> str:
    assert node.parameter is not None
    kind = "parameter" if node.parameter.kind == "parameter" else "buffer"
    return f"self.get_{kind}({quoted(node.parameter.names[0])})"


def _module(node: Node) -> str:
    return node.location.module if node.location else ""


class _Calls:
    """Writes one statement a call; the variable of a call is named for its place."""

    def __init__(self, graph: Graph, names: dict[Value, str]) -> None:
        self._graph, self._names = graph, names
        taken = set(names.values())
        self._results = {n.id: unique(f"v{at}", taken) for at, n in enumerate(graph.calls)}
        tensors = (n for n in (*graph.parameters, *graph.inputs) if isinstance(n.results[0], TensorType))
        self._anchor = next((self.value(Value(n.id), n).text for n in tensors), "")

    def lines(self) -> Iterator[str]:
        """Yield the statements."""
        for node in self._graph.calls:
            source = full_name(node, self).text
            counted = batch_counter(self._graph, node) if node.op == BATCH_NORM and mode_argument(node) else None
            if counted is not None:
                counter = _tensor(counted)
                yield f"if {self.training(node)}:"
                yield f"    {counter}.add_(1)"
                if node.argument("momentum") == 0.0:  # stands for the average over all batches
                    source = cumulative(node, counter, self).text
            yield f"{self._results[node.id]} = {source}"

    def value(self, value: Value, near: Node) -> Code:
        """Return the source of a value."""
        node = self._graph.node(value.node)
        if node.parameter is not None:
            return Code(_tensor(node))
        if value in self._names:
            return Code(self._names[value])
        name = self._results[value.node]
        return Code(f"{name}[{value.index}]" if returns_sequence(node.op) else name)

    def device(self, node: Node) -> str:
        """Return the source of the device of the first tensor of the program."""
        return f"{self._anchor}.device" if self._anchor else 'torch.device("cpu")'

    def training(self, node: Node) -> str:
        """Return the source of the mode of the module a call came from."""
        return f"{_owner(_module(node))}.training"
