"""The value oracle: whether the widths found in a graph are what they claim to be, checked by running the graph.

Units of a width are interchangeable, so permuting them leaves the outputs as they were; deleting a unit does what
zeros do in all its places and wherever it is summed over; copies and fresh units that a reindexing makes leave the
outputs as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from archir.axes.infer import infer_widths
from archir.axes.positions import contains, positions
from archir.axes.widths import Width, Widths
from archir.errors import GraphError, PassError
from archir.ir.execute import Call, call, compile_call
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.rewrite.changes import Change
from archir.rewrite.multiplicity import relate
from archir.rewrite.reindex import plan_reindexing, reindex

TOLERANCE = 1e-9
"""Largest relative difference, in float64, of outputs that are called the same."""


def randomise(graph: Graph, seed: int = 0) -> Graph:
    """Return the graph with noise on its trainable tensors and running statistics, so that nothing is trivially zero.

    Args:
        graph: the graph.
        seed: of the noise; running means are standard normal, running variances uniform in [0.5, 2).
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for node in graph.parameters:
        tensor = graph.tensors[node.id]
        if node.parameter is None or not tensor.is_floating_point():
            continue
        name = node.parameter.names[0]
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        if name.endswith("running_mean"):
            tensors[name] = noise
        elif name.endswith("running_var"):
            tensors[name] = 0.5 + 1.5 * torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
        elif node.parameter.kind == "parameter":
            tensors[name] = tensor + 0.1 * noise
    return graph.with_tensors(tensors)


Zeros = Mapping[tuple[int, Value], Sequence[tuple[int, Tensor]]]
"""By node and operand: along which axes, and at which positions, the node finds zeros in the operand."""


@dataclass(frozen=True)
class Evaluation:
    """A graph and every value of it: what another graph leaves as it is need not be made again.

    Attributes:
        graph: the graph.
        values: what its calls made.
        calls: those that had to be made again, by node, ready to be executed.
    """

    graph: Graph
    values: Mapping[Value, Any]
    calls: dict[int, Call] = field(default_factory=dict)

    def results(self, node: Node, values: Mapping[Value, Any]) -> tuple[Any, ...] | None:
        """Return what a call makes that is one of this graph, on the very same values; None if it is not."""
        if not self.has(node) or any(self.values[v] is not values[v] for v in node.values):
            return None
        return tuple(map(self.values.__getitem__, node.made))

    def has(self, node: Node) -> bool:
        """Say whether a node of another graph is one of this."""
        return node.id in self.graph and self.graph.node(node.id) is node

    def call(self, node: Node, argument_values: Callable[[Value], object]) -> tuple[Any, ...]:
        """Execute a call of another graph."""
        if not self.has(node):
            return call(node, argument_values)
        if node.id not in self.calls:
            self.calls[node.id] = compile_call(node)
        return self.calls[node.id](argument_values)


def evaluate(
    graph: Graph,
    inputs: Sequence[object],
    zeros: Zeros = MappingProxyType({}),
    known: Evaluation | None = None,
) -> dict[Value, Any]:
    """Return every value of a graph, in evaluation mode, for the given values of its inputs.

    Args:
        graph: the graph.
        inputs: the values of its inputs.
        zeros: operands in which single calls find zeros in place of what is there.
        known: a graph that this one was made of, with its values for the same inputs.

    Raises:
        GraphError: another number of inputs than the graph has.
    """
    if len(inputs) != len(graph.inputs):
        raise GraphError(f"{graph.name} takes {len(graph.inputs)} inputs, not {len(inputs)}")
    values: dict[Value, Any] = {Value(n.id): found for n, found in zip(graph.inputs, inputs, strict=True)}
    values |= {Value(i): tensor for i, tensor in graph.tensors.items()}
    blanked = {node for node, _ in zeros}
    with torch.no_grad():
        for node in graph.calls:
            found = None if known is None or node.id in blanked else known.results(node, values)
            if found is None:
                read = {v: _blanked(values[v], zeros.get((node.id, v), ())) for v in node.values}
                found = (call if known is None else known.call)(node, read.__getitem__)
            for i, result in enumerate(found):
                values[Value(node.id, i)] = result
    return values


def _blanked(tensor: Any, where: Iterable[tuple[int, Tensor]]) -> Any:
    for axis, places in where:
        tensor = tensor.index_fill(axis, places, 0)
    return tensor


def outputs(
    graph: Graph,
    inputs: Sequence[object],
    zeros: Zeros = MappingProxyType({}),
    known: Evaluation | None = None,
) -> list[Any]:
    """Return what a graph returns, in evaluation mode; arguments and errors are those of `evaluate`."""
    values = evaluate(graph, inputs, zeros, known)
    return [values[value] for value in graph.output.values]


def leaves_of(args: Sequence[object], kwargs: Mapping[str, object] | None = None) -> list[Tensor]:
    """Return the tensors among the arguments of a model, in the order of the graph's inputs, floats as float64."""
    found, _ = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
    tensors = [t for t in found if isinstance(t, Tensor)]
    return [t.double() if t.is_floating_point() else t for t in tensors]


def relative_difference(new: Sequence[Tensor], old: Sequence[Tensor]) -> float:
    """Return the largest absolute difference between tensors over the largest magnitude of the old one.

    Equal infinities and not-a-numbers are no difference; tensors of different shapes differ infinitely.
    """
    worst = 0.0
    for a, b in zip(new, old, strict=True):
        if a.shape != b.shape:
            return math.inf
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        found = (a - b).abs().where(~same, 0).max() / b.abs().where(b.isfinite(), 0).max().clamp(min=1e-30)
        worst = max(worst, math.inf if found.isnan() else float(found))
    return worst


@dataclass(frozen=True)
class Outcome:
    """What became of the outputs when the units of a width changed.

    Attributes:
        difference: largest relative difference from what they should be; zero if it was refused.
        reason: why the change was refused; empty if it was carried out.
    """

    difference: float
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether it was carried out and the outputs are as they should be."""
        return not self.reason and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return self.reason or ("exact" if self.exact else f"off by {self.difference:.2g}")


@dataclass(frozen=True)
class Verdict:
    """What the oracle found out about a width.

    Attributes:
        width: the width.
        pruned: single units removed, against zeros (see `without`).
        permuted: units in another order.
        split: one unit repeated twice.
        tripled: one unit repeated three times and another one twice.
        doubled: all units repeated twice.
        widened: two fresh units.
    """

    width: Width
    pruned: Outcome
    permuted: Outcome
    split: Outcome
    tripled: Outcome
    doubled: Outcome
    widened: Outcome

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """The outcomes by name."""
        names = ("pruned", "permuted", "split", "tripled", "doubled", "widened")
        return {name: getattr(self, name) for name in names}

    @property
    def problems(self) -> list[str]:
        """What contradicts the claim that this is a free width.

        Widths with statistics or reductions over them need not be exact when pruned, only run; repeats and fresh
        units may be refused.
        """
        inexact = {"pruned"} if self.width.roles & {"norm", "reduced"} else set()
        refusable = {"split", "tripled", "doubled", "widened"}
        return [
            f"{self.width.name} {name}: {outcome}"
            for name, outcome in self.outcomes.items()
            if not (
                outcome.exact
                or (name in inexact and not outcome.reason and math.isfinite(outcome.difference))
                or (name in refusable and outcome.reason)
            )
        ]

    def __str__(self) -> str:
        return f"{self.width.name}: " + ", ".join(f"{name} {outcome}" for name, outcome in self.outcomes.items())


def check_widths(
    graph: Graph,
    args: Sequence[object],
    kwargs: Mapping[str, object] | None = None,
    *,
    units: int = 3,
    seed: int = 0,
) -> list[Verdict]:
    """Change every free width of a graph in every way there is, and compare outputs in float64.

    Args:
        graph: the graph; its tensors are randomised first.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        units: how many units of each width are removed, one at a time.
        seed: of the noise.

    Returns:
        One verdict a width, in order.

    Raises:
        GraphError: a changed graph is malformed: an axis rule is wrong.
    """
    graph = randomise(graph.to(torch.float64), seed)
    inputs = leaves_of(args, kwargs)
    widths, known = infer_widths(graph), Evaluation(graph, evaluate(graph, inputs))
    return [_check(widths, width, inputs, known, units) for width in widths]


def _check(widths: Widths, width: Width, inputs: Sequence[Tensor], known: Evaluation, units: int) -> Verdict:
    size, middle = width.size, width.size // 2
    right = [known.values[value] for value in known.graph.output.values]

    def outcome(change: Change, expected: Sequence[Tensor] = right) -> Outcome:
        try:
            plan = plan_reindexing(widths, {width.name: change})
        except PassError as error:
            return Outcome(0.0, error.why or error.what)
        return Outcome(relative_difference(outputs(reindex(plan, by="check").after, inputs, known=known), expected))

    def pruned(unit: int) -> Outcome:
        kept = tuple(u for u in range(size) if u != unit)
        return outcome(Change(kept), without(widths, width, [unit], inputs, known))

    every = tuple(range(size))
    removed = sorted({round(i * (size - 1) / max(units - 1, 1)) for i in range(units)})
    return Verdict(
        width,
        pruned=max(map(pruned, removed), key=lambda o: o.difference),
        permuted=outcome(Change((*every[1:], 0))),
        split=outcome(Change((*every, middle))),
        tripled=outcome(Change((*every, middle, middle, 0))),
        doubled=outcome(Change(every * 2)),
        widened=outcome(Change((*every, size, size + 1), fresh=2)),
    )


def zeroed(widths: Widths, units: Mapping[str, Sequence[int]]) -> Graph:
    """Return the graph with zeros in all places of some units of widths, by name."""
    tensors: dict[str, Tensor] = {}
    for name, removed in units.items():
        width = widths[name]
        for place in width.places:
            tensor = tensors.get(place.parameter, widths.graph.tensor(place.parameter))
            tensors[place.parameter] = tensor.index_fill(place.axis, width.positions(place, removed), 0)
    return widths.graph.with_tensors(tensors)


def without(
    widths: Widths, width: Width, units: Sequence[int], inputs: Sequence[object], known: Evaluation | None = None
) -> list[Any]:
    """Return what a graph returns without some units of a width: what removing them amounts to.

    There are zeros in their places, and wherever they are summed over: zeros in their places are not enough where
    something else is made of zero before two activations are multiplied, as the sigmoid does.
    """
    removed = torch.as_tensor(units)
    zeros: dict[tuple[int, Value], list[tuple[int, Tensor]]] = {}
    for node, value in relate(widths, width).ends:
        axes = [(axis, term) for axis, term in enumerate(widths.axes[value]) if contains(term, width.atom)]
        zeros[node, value] = [(axis, positions(term, width.atom, removed)) for axis, term in axes]
    return outputs(zeroed(widths, {width.name: units}), inputs, zeros, known)
