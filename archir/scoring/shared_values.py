"""Gradients of single examples on values that all examples of a batch share, such as a table of positions.

The gradient on such a value is a sum over the examples, and what scoring squares are inner products of one example. But
the calls that use the value, up to those whose results tell the examples apart, are few. They are made once more, all
else held, and the gradient where they end is pulled back through them for one example at a time.

Source: ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from archir.axes.infer import infer_widths
from archir.axes.terms import Atom
from archir.ir.device_memory import is_out_of_memory
from archir.ir.graph import Graph
from archir.ir.node import Use, Value
from archir.ir.types import is_float
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.subgraph import Values, members_of
from archir.scoring.downstream import compile_operator
from archir.scoring.program import make_tap
from archir.scoring.reduction import Reduction

AT_ONCE = 2**24
"""How many numbers gradients may have that are pulled back at once, each for one example."""

_FIRST = Atom(1)
"""The first axis of an output, along which examples lie whatever it is made of."""


@dataclass(frozen=True)
class Replayed:
    """The calls between shared values and where examples are told apart, made once more on a batch.

    Attributes:
        taps: for each edge a tensor at which gradients are taken.
        ends: the values at the ends that depend on one.
    """

    taps: Mapping[Edge, torch.Tensor]
    ends: Mapping[Edge, torch.Tensor]


class SharedValues:
    """The way from edges on which no axis tells examples apart to the values where one does, or to the outputs.

    Attributes:
        edges: the edges it begins on.
        ends: the values where it ends, and the uses as outputs; with how the examples lie in each.
        needs: the values of the program that are read.
    """

    def __init__(self, graph: Graph, edges: Iterable[Edge]) -> None:
        """Find the calls on the way.

        Args:
            graph: the graph.
            edges: edges on which no axis tells examples apart.
        """
        widths, self.edges = infer_widths(graph), frozenset(edges)
        self.ends: dict[Edge, Members] = {}
        self._operators = []
        self._shared = {e for e in self.edges if isinstance(e, Value)}
        for node in graph.calls:
            if not any(value in self._shared or use in self.edges for use, value in node.operands()):
                continue
            self._operators.append(compile_operator(node, graph.device))
            for value, type_ in zip(node.made, node.results, strict=True):
                members = members_of(widths, value, None) if is_float(type_) else None
                if members is not None and members.example_axis is not None:
                    self.ends[value] = members
                elif members is not None:
                    self._shared.add(value)
        self._returned = [(u, v) for u, v in graph.output.operands() if v in self._shared or u in self.edges]
        self.ends |= {u: _of_output(len(widths.axes[v])) for u, v in self._returned}
        read = {v for operator in self._operators for v in operator.operands} | {v for _, v in self._returned}
        made = {v for operator in self._operators for v in operator.node.made} & self._shared
        self.needs = frozenset(read | (self._shared & self.edges)) - (made - self.edges)
        self._reductions: dict[tuple[Edge, torch.Size, int], Reduction] = {}
        self._one_by_one = False

    @torch.enable_grad()
    def replay(self, values: Values) -> Replayed:
        """Make the calls once more.

        Args:
            values: of the program on a batch, at least those in `needs`.
        """
        taps: dict[Edge, torch.Tensor] = {e: make_tap(values[e]) for e in self.edges if isinstance(e, Value)}
        new: dict[Value, torch.Tensor] = {e: t for e, t in taps.items() if isinstance(e, Value)}
        ends: dict[Edge, torch.Tensor] = {}

        def operand(use: Use, value: Value) -> torch.Tensor:
            found = new[value] if value in new else values[value]
            if use in self.edges:
                found = taps[use] = make_tap(found)
            return found

        for operator in self._operators:
            given = [operand(u, v) for u, v in zip(operator.uses, operator.operands, strict=True)]
            for i, result in enumerate(operator(given)):
                value = Value(operator.node.id, i)
                if value in self.ends:
                    ends[value] = result
                elif value in self._shared:
                    new[value] = result
                    if value in self.edges:
                        taps[value] = new[value] = make_tap(result)
        ends |= {use: operand(use, value) for use, value in self._returned}
        return Replayed(taps, {e: t for e, t in ends.items() if t.requires_grad})

    def gradients(
        self, replayed: Replayed, pulled: Mapping[Edge, torch.Tensor], examples: int
    ) -> dict[Edge, torch.Tensor]:
        """Return the gradient of every example on the edges; `[examples, *shape of the value]`.

        Args:
            replayed: what `replay` has made.
            pulled: the gradients at the ends, those on which nothing depends left out.
            examples: number of examples in the batch.
        """
        ends = [e for e in replayed.ends if e in pulled]
        edges, parts = list(replayed.taps), list[Sequence[torch.Tensor | None]]()
        size = max(1, AT_ONCE // max(1, sum(pulled[e].numel() for e in ends)))
        for start in range(0, examples if ends else 0, size):
            alone = torch.eye(examples, dtype=pulled[ends[0]].dtype, device=pulled[ends[0]].device)
            cotangents = [self._masked(e, pulled[e], alone[start : start + size]) for e in ends]
            parts.append(self._pull([replayed.ends[e] for e in ends], list(replayed.taps.values()), cotangents))
        found = {e: [g for part in parts if (g := part[i]) is not None] for i, e in enumerate(edges)}
        return {edge: torch.cat(each) for edge, each in found.items() if each}

    def _masked(self, end: Edge, gradient: torch.Tensor, alone: torch.Tensor) -> torch.Tensor:
        """Return a gradient for some examples each alone, zero at all positions of others."""
        key = end, gradient.shape, alone.shape[1]
        if key not in self._reductions:
            self._reductions[key] = Reduction(self.ends[end], 1, *key[1:], gradient.device)
        return torch.stack([self._reductions[key].spread(one[:, None]) * gradient for one in alone])

    def _pull(
        self, ends: Sequence[torch.Tensor], taps: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor | None]:
        """Return the gradients at the taps for several cotangents of the ends, all at once where the calls allow it."""
        if not self._one_by_one and len(cotangents[0]) > 1:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="There is a performance drop")
                try:
                    return torch.autograd.grad(
                        ends, taps, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
                    )
                except (RuntimeError, UserWarning) as error:  # a call has no batching rule
                    if is_out_of_memory(error):
                        raise
                    self._one_by_one = True
        each = [
            torch.autograd.grad(ends, taps, one, retain_graph=True, allow_unused=True)
            for one in zip(*cotangents, strict=True)
        ]
        return [None if found[0] is None else torch.stack(found) for found in zip(*each, strict=True)]


def _of_output(axes: int) -> Members:
    return Members(min(1, axes - 1), torch.empty(0, dtype=torch.long), 0, _FIRST, _FIRST)
