"""The part of a graph downstream of some edges: its calls made ready for forward mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch

from archir.ir.execute import Call, compile_call
from archir.ir.graph import Graph
from archir.ir.node import Argument, Node, Use, Value
from archir.ir.registry import operator_of
from archir.rewrite.perturbation import Edge
from archir.scoring.program import plain_call


@dataclass(frozen=True)
class Operator:
    """A call with its operands numbered: operand `i` is looked up as `Value(i)`.

    Attributes:
        node: the node.
        uses: the place of each operand.
        operands: the value of each operand.
        call: the call.
        unbiased: the same without its bias, for operators that have one.
    """

    node: Node
    uses: tuple[Use, ...]
    operands: tuple[Value, ...]
    call: Call
    unbiased: Call

    def __call__(self, operands: Sequence[Any], *, bias: bool = True) -> tuple[Any, ...]:
        """Execute the operator on operands in order."""
        return (self.call if bias else self.unbiased)(lambda v: operands[v.node])


def compile_operator(node: Node, device: torch.device | None = None) -> Operator:
    """Make a call ready to be executed on operands in order."""
    plain = plain_call(node)
    count = 0

    def number(argument: Argument) -> Argument:
        nonlocal count
        if isinstance(argument, Value):
            count += 1
            return Value(count - 1)
        return tuple(map(number, argument)) if isinstance(argument, tuple) else argument

    arguments = {name: number(a) for name, a in plain.arguments.items()}
    without = {n: None if n == "bias" else a for n, a in arguments.items()}
    call = compile_call(replace(plain, arguments=arguments), device=device)
    unbiased = (
        compile_call(replace(plain, arguments=without), device=device)
        if "bias" in arguments and operator_of(node.op).multilinear
        else call
    )
    return Operator(node, tuple(use for use, _ in node.operands()), node.values, call, unbiased)


class Downstream:
    """The part of a graph downstream of some edges, ready for forward mode; made once, used for every batch."""

    def __init__(self, graph: Graph, edges: Iterable[Edge]) -> None:
        """Find the calls between the edges and the outputs."""
        between = _between(graph, {u.node for e in edges for u in ([e] if isinstance(e, Use) else graph.uses(e))})
        self.operators = tuple(compile_operator(n, graph.device) for n in graph.calls if n.id in between)
        self.shared = frozenset(v for o in self.operators for v in o.operands if len(graph.uses(v)) > 1)
        self.results = graph.output.values
        self.output_uses = tuple(u for u, _ in graph.output.operands())
        last = {v: i for i, o in enumerate(self.operators) for v in o.operands}
        self.dropped: tuple[tuple[Value, ...], ...] = tuple(
            tuple({v for v in o.operands if last[v] == i and v not in self.results})
            for i, o in enumerate(self.operators)
        )

    @property
    def needs(self) -> frozenset[Value]:
        """The values forward mode reads."""
        read = {v for o in self.operators for v in o.operands}
        made = {v for o in self.operators for v in o.node.made}
        return frozenset(read | made | set(self.results))


def _between(graph: Graph, starts: Set[int]) -> Set[int]:
    """Return the nodes on the ways from some nodes to the output, these included; one sweep there and one back."""
    reached, needed = set(starts), {graph.output.id}
    for node in graph.nodes:
        if any(v.node in reached for v in node.values):
            reached.add(node.id)
    for node in reversed(graph.nodes):
        if node.id in needed:
            needed.update(v.node for v in node.values)
    return reached & needed
