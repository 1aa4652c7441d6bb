"""GradMax: fresh units that get the largest gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from archir.axes.infer import infer_widths
from archir.axes.positions import size_of
from archir.axes.widths import Width, Widths
from archir.ir.execute import Call, compile_call
from archir.ir.node import PARAMETER, Node, Value
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.registry import operator_of
from archir.rewrite.miss import Miss
from archir.rewrite.subgraph import Subgraph, call_for, makes_linearly, weighted_subgraph_of
from archir.rewrite.theta import by_node
from archir.scoring.families import Family
from archir.scoring.strategies.context import ScoringContext, only
from archir.scoring.strategies.result import FamilyResult, StrategyResult
from archir.scoring.strategies.unit_vectors import UnitVectors, unit_vectors
from archir.scoring.tapped import backward, tapped_program

CHUNK = 64
"""Number of outgoing directions whose gradients are found at once."""

SILENCE = 1e-3
"""Length of the incoming weights of a fresh unit relative to the others', where zero would leave it dead."""


@dataclass(frozen=True)
class GradMax:
    """Widen where the gradient of the fresh units' incoming weights is largest, and so that it is.

    With the incoming weights W at zero nothing changes, and `∂L/∂W = Mᵀ V` is linear in the outgoing weights V, where
    `M` sums gradients at the consumer times activations at the producer, over examples and places. Among orthogonal
    outgoing weights of given length c, that of the other units, `‖∂L/∂W‖² = c² Σ σ²` is largest for the left singular
    vectors of M with the largest singular values. The order is the negative of that.

    Between W and V there may be calls that are linear, batch normalisation, and pointwise functions that are zero
    at zero; the slope of these there is taken as 1. Where PyTorch takes it as 0 (ReLU), the units would never learn:
    W is then a small step down the gradient, and not quite zero.

    Attributes:
        batches: most batches of those that θ is found on.

    Source: Evci et al. 2022, section 3; orthogonality in place of one bound on all of V, consumers of any wiring, and
        the step for ReLU are ours.
    """

    name: str = "gradmax"
    summary: str = "widen: the largest gradients of the fresh weights, by singular vectors"
    running_statistics: bool = True
    batches: int = 16

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        prepared = [only("widen", f) or _prepare(context, f) for f in context.families]
        found = {i: p for i, p in enumerate(prepared) if not isinstance(p, Miss)}
        matrices = self._matrices(context, found)
        families = [p if isinstance(p, Miss) else p.result(context, matrices[i]) for i, p in enumerate(prepared)]
        return StrategyResult(tuple(families))

    def _matrices(self, context: ScoringContext, prepared: Mapping[int, _Fresh]) -> dict[int, torch.Tensor]:
        """Return M of each family, `[outgoing, incoming]`."""
        program = tapped_program(context.streamed.program, [context.perturbations[i] for i in prepared])
        totals: dict[int, torch.Tensor] = {}
        examples = 0
        for batch in context.learn[: self.batches]:
            evaluation = program(batch.inputs)
            gradient, _ = backward(context.streamed, evaluation, batch.targets)
            at = {e: g for e, g in gradient.items() if isinstance(e, Value)}
            for i, fresh in prepared.items():
                found = fresh.covariance(evaluation.values, at)
                totals[i] = totals[i] + found if i in totals else found
            examples += batch.examples
        processes = context.objective.processes
        (every,), summed = processes.total(examples), processes.sum(*totals.values())
        return {i: t / every for i, t in zip(totals, summed, strict=True)}


@dataclass(frozen=True)
class _Fresh:
    """The way through a width from what makes its units to what sums over them, for fresh units alone.

    Attributes:
        widths: the widths of the graph.
        width: the width.
        subgraph: its subgraph.
        count: number of fresh units.
        outgoing: the weights the width is summed over against.
        skipped: calls that stand for the identity, and the value that goes through each.
        unit_scales: stored tensors that fresh units hold ones in; they hold zero in other tensors.
        dead: whether PyTorch takes the slope at zero of some call as zero.
    """

    widths: Widths
    width: Width
    subgraph: Subgraph
    count: int
    outgoing: tuple[int, ...]
    skipped: Mapping[int, Value]
    unit_scales: frozenset[int]
    dead: bool

    def vectors(self, nodes: tuple[int, ...], units: int | None = None) -> UnitVectors:
        """Return how stored tensors are shared out among the units, or among so many fresh ones."""
        return unit_vectors(self.widths, self.width, nodes, units)

    def covariance(self, values: Mapping[Value, torch.Tensor], gradient: Mapping[Value, torch.Tensor]) -> torch.Tensor:
        """Return `Σ` gradient times activation over the examples of a batch; `[outgoing, incoming]`."""
        size = self.vectors(self.outgoing, 1).size
        weight = self.widths.graph.tensors[self.outgoing[0]]
        basis = torch.eye(size, dtype=weight.dtype, device=weight.device)
        parts = (basis[i : i + CHUNK] for i in range(0, size, CHUNK))
        return torch.cat([self._pulled(values, gradient, part) for part in parts])

    def _pulled(
        self, values: Mapping[Value, torch.Tensor], gradient: Mapping[Value, torch.Tensor], rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient of the incoming weights for units with the outgoing weights `rows`."""
        units = len(rows)
        incoming = self.vectors(self.subgraph.weights, units)
        with torch.enable_grad():
            w = rows.new_zeros(units, incoming.size, requires_grad=True)
            new = {Value(n): t for n, t in incoming.unpack(w).items()}
            new |= {Value(n): t for n, t in self.vectors(self.outgoing, units).unpack(rows).items()}
            total = rows.new_zeros(())
            for value, result in self._walk(values, new, units).items():
                if value in gradient:
                    total = total + (gradient[value] * result).sum()
        if not total.requires_grad:
            return torch.zeros_like(w)
        (found,) = torch.autograd.grad(total, w)
        return found

    def _walk(
        self, values: Mapping[Value, torch.Tensor], new: dict[Value, torch.Tensor], units: int
    ) -> dict[Value, torch.Tensor]:
        """Evaluate the subgraph for fresh units alone, every pointwise call as the identity; return what leaves it."""
        results: dict[Value, torch.Tensor] = {}
        graph, sizes = self.widths.graph, {self.width.atom: units}

        def look_up(value: Value) -> torch.Tensor:
            if value in new:
                return new[value]
            if graph.node(value.node).op == PARAMETER and self._carries(value):
                shape = [size_of(t, sizes) for t in self.widths.axes[value]]
                return graph.tensors[value.node].new_zeros(shape)
            return values[value]

        for node in self.subgraph.nodes:
            if node.id in self.skipped:
                new[Value(node.id)] = look_up(self.skipped[node.id])
                continue
            for i, result in enumerate(self._call(node, units)(look_up)):
                new[Value(node.id, i)] = result
        for use, _ in self.subgraph.ends:
            (results[Value(use.node)],) = self._call(graph.node(use.node), units)(look_up)
        return results

    def _carries(self, value: Value) -> bool:
        return any(p.node == value.node for p in self.width.places)

    def _call(self, node: Node, units: int) -> Call:
        """Return a call as it is for fresh units alone, without its bias."""
        return compile_call(call_for(self.widths, node, self.width.atom, units, bias=False))

    def result(self, context: ScoringContext, matrix: torch.Tensor) -> FamilyResult:
        """Return what follows from the singular values and vectors of M."""
        tensors = context.graph.tensors
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        outgoing, incoming = (self.vectors(nodes).pack(tensors) for nodes in (self.outgoing, self.subgraph.weights))
        length = outgoing.norm(dim=1).mean()
        rows, inner = matrix.new_zeros(self.count, len(matrix)), matrix.new_zeros(self.count, matrix.shape[1])
        number = min(self.count, len(s))
        rows[:number] = u.mT[:number] * length
        if self.dead:
            inner[:number] = -vh[:number] * incoming.norm(dim=1).mean() * SILENCE
        theta: dict[int, torch.Tensor] = self.vectors(self.outgoing, self.count).unpack(rows)
        theta |= self.vectors(self.subgraph.weights, self.count).unpack(inner)
        for place in self.width.places:
            if place.node not in theta and tensors[place.node].is_floating_point():
                shape = [size_of(t, {self.width.atom: self.count}) for t in self.widths.axes[Value(place.node)]]
                theta[place.node] = tensors[place.node].new_full(shape, float(place.node in self.unit_scales))
        gain = float(length**2 * s[:number].square().sum())
        return FamilyResult(torch.tensor([-gain], dtype=torch.float64), theta={n: t for n, t in theta.items()})


def _prepare(context: ScoringContext, family: Family) -> _Fresh | Miss:
    widths = infer_widths(context.graph)
    width = widths[family.site.label]
    subgraph = weighted_subgraph_of(widths, width)
    if isinstance(subgraph, Miss):
        return subgraph
    other = next((use.node for use, _ in subgraph.ends if not makes_linearly(context.graph.node(use.node))), None)
    if other is not None:
        return Miss(f"{context.graph.node(other).op} sums over it, which is no layer with weights", (other,))
    skipped: dict[int, Value] = {}
    ones: set[int] = set()
    dead = False
    for node in subgraph.nodes:
        if node.id in subgraph.changes or operator_of(node.op).linear_in(node.arguments):
            continue
        carrier = _pointwise_operand(subgraph, node)
        if node.op == BATCH_NORM and isinstance(node.arguments["input"], Value):
            skipped[node.id] = node.arguments["input"]
            scales = (node.arguments.get("weight"), node.arguments.get("running_var"))
            ones |= {v.node for v in scales if isinstance(v, Value)}
        elif carrier is not None:
            value, slope = _at_zero(node)
            if value != 0:
                return Miss("a pointwise function on the way is not zero at zero", (node.id,))
            skipped[node.id] = carrier
            dead = dead or slope == 0
        else:
            return Miss(f"{node.op} on the way is neither linear nor a pointwise function", (node.id,))
    weights = (context.graph.node(use.node).arguments["weight"] for use, _ in subgraph.ends)
    outgoing = tuple(dict.fromkeys(v.node for v in weights if isinstance(v, Value)))
    count = _fresh_units(family, widths, width)
    return _Fresh(widths, width, subgraph, count, outgoing, skipped, frozenset(ones), dead)


def _fresh_units(family: Family, widths: Widths, width: Width) -> int:
    """Return how many fresh units the candidate of a family brings, read off the shape of its θ."""
    node = next(iter(by_node(family.perturbation.theta)))
    axis = next(p.axis for p in width.places if p.node == node)
    terms = widths.axes[Value(node)]
    return family.perturbation.theta[node].shape[axis] * width.size // terms[axis].size


def _pointwise_operand(subgraph: Subgraph, node: Node) -> Value | None:
    """Return the one operand of a pointwise function of one tensor, None for any other call."""
    operands = {*node.values}
    carriers = subgraph.carried[node.id]
    alone = operator_of(node.op).pointwise and len(operands) == 1 and operands == carriers
    return next(iter(carriers)) if alone else None


def _at_zero(node: Node) -> tuple[float, float]:
    """Return the value and the slope, as PyTorch has it, of a pointwise function at zero."""
    with torch.enable_grad():
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (value,) = compile_call(node)(lambda _: x)
        if not value.requires_grad:
            return float(value), 0.0
        (slope,) = torch.autograd.grad(value, x)
    return float(value.detach()), float(slope)
