"""Pruning with compensation: the weights of the units that stay take over what the removed units gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from archir.axes.infer import infer_widths
from archir.axes.positions import positions
from archir.axes.widths import Widths
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.rewrite.changes import Change
from archir.rewrite.morphism import UnitMorphism
from archir.rewrite.multiplicity import relate
from archir.rewrite.pipeline import apply_together, merged_changes
from archir.rewrite.spec import format_spec
from archir.rewrite.subgraph import makes_linearly
from archir.scoring.batches import no_batches
from archir.scoring.pairs import keywords, tensor_pair
from archir.scoring.processes import ALONE, Processes
from archir.scoring.program import Inputs, Program

LARGEST = 8192
"""Most positions along the axis a layer sums over for which the Gram matrix is made."""

RIDGE = 1e-4
"""λ of the least squares, in multiples of the mean of the diagonal of the Gram matrix."""


@dataclass
class _Consumer:
    """A stored weight that is summed over along pruned widths, in one or more calls.

    Attributes:
        weight: the weight.
        transposed: whether its first axis is the one summed over, else the second.
        groups: number of groups its inputs fall into.
        inputs: for each call the value it sums over, and along which axis of it.
        removed: which positions along that axis are removed; `[positions]`.
        gram: `Σ h hᵀ` over examples and places, `[groups, positions / groups, positions / groups]`.
    """

    weight: Value
    transposed: bool
    groups: int
    removed: torch.Tensor
    inputs: dict[Value, int] = field(default_factory=dict)
    gram: torch.Tensor | None = None

    def observe(self, values: Mapping[Value, torch.Tensor]) -> None:
        """Add a batch to the Gram matrix."""
        for value, axis in self.inputs.items():
            h = values[value].movedim(axis, -1)
            h = h.reshape(-1, self.groups, h.shape[-1] // self.groups).transpose(0, 1).double()
            gram = h.transpose(1, 2) @ h
            self.gram = gram if self.gram is None else self.gram + gram

    def compensate(self, weight: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return the weight with what the removed positions gave shared out among those that stay."""
        assert self.gram is not None
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        rows = grouped if self.transposed else grouped.transpose(1, 2)
        new = rows.flatten(2).to(self.gram, copy=True)
        for group, removed in enumerate(self.removed.to(new.device).reshape(self.groups, -1)):
            gram = self.gram[group]
            kept = gram[~removed][:, ~removed]
            if not bool(removed.any()) or not bool(kept.any()):
                continue
            kept = kept + ridge * kept.diagonal().mean() * torch.eye(len(kept)).to(kept)
            new[group, ~removed] += torch.linalg.solve(kept, gram[~removed][:, removed]) @ new[group, removed]
        new = new.reshape(rows.shape)
        return (new if self.transposed else new.transpose(1, 2)).flatten(0, 1).to(weight)


def compensated(
    graph: Graph,
    batches: Iterable[tuple[Inputs, object] | Mapping[str, Any]],
    prunes: Sequence[UnitMorphism],
    *,
    ridge: float = RIDGE,
) -> Graph:
    """Remove units, once the weights of those that stay have taken over what they gave; see `taken_over`.

    Args:
        graph: the graph.
        batches: pairs of inputs and targets, or mappings, see `pair_of`; the targets are not looked at.
        prunes: the units to remove, of one or more widths.
        ridge: of the least squares.

    Returns:
        The smaller graph.

    Raises:
        PassError: a rewrite does more than remove units, or cannot be done.
        ScoreError: there are no batches, the graph is noisy in evaluation mode, or the ridge is no number from 0.
    """
    return apply_together(taken_over(graph, batches, prunes, ridge=ridge), [(prune, None) for prune in prunes])


def removes_units(widths: Widths, morphism: object) -> bool:
    """Say whether a rewrite removes units of a width and does nothing else."""
    if not isinstance(morphism, UnitMorphism):
        return False
    change = morphism.change(widths[morphism.width])
    alone = not change.fresh and not change.merged and len(set(change.source)) == len(change.source)
    return alone and len(change.source) < widths[morphism.width].size


def taken_over(
    graph: Graph,
    batches: Iterable[tuple[Inputs, object] | Mapping[str, Any]],
    prunes: Sequence[UnitMorphism],
    *,
    ridge: float = RIDGE,
    processes: Processes = ALONE,
) -> Graph:
    """Return a graph of which units are yet to be removed, where the weights of the others take over what they give.

    Let a linear layer or convolution read the activations `h`, of which the positions R go and K stay. Least squares
    on all examples and places gives `h_R ≈ A h_K`, with `A = G_RK (G_KK + λI)⁻¹`, `G = Σ h hᵀ`, and the columns of the
    weight become `W_K + W_R A`. Consumers of other kinds, weights that are used for something else too, and those that
    read more than `LARGEST` positions stay as they are.

    Args:
        graph: the graph.
        batches: pairs of inputs and targets, or mappings, see `pair_of`; the targets are not looked at.
        prunes: the units to remove, of one or more widths.
        ridge: λ in multiples of the mean of the diagonal of `G_KK`.
        processes: those that share the batches out among them, each of which gives its own.

    Returns:
        The graph with other weights; only without the units it computes about what the old one does.

    Raises:
        PassError: a rewrite does more than remove units, or cannot be done.
        ScoreError: there are no batches, the graph is noisy in evaluation mode, or the ridge is no number from 0.

    Source: He, Zhang, Sun 2017 (channel pruning) for the least squares; consumers of any wiring are ours.
    """
    widths = infer_widths(graph)
    for prune in prunes:
        if not removes_units(widths, prune):
            raise PassError(f"{format_spec(prune)} does more than remove units", hint="give prunes only")
    consumers = _find_consumers(widths, merged_changes(widths, [(prune, None) for prune in prunes]))
    program = Program(graph, keep=frozenset(v for c in consumers for v in c.inputs))
    empty = True
    for batch in batches:
        inputs, _ = tensor_pair(batch, graph.tensors.values(), keywords(graph))
        values = program(program.bind(inputs)).values
        for consumer in consumers:
            consumer.observe(values)
        empty = False
    if empty:
        raise no_batches()
    summed = processes.sum(*(c.gram for c in consumers if c.gram is not None))
    for consumer, gram in zip(consumers, summed, strict=True):
        consumer.gram = gram
    return graph.with_stored({c.weight.node: c.compensate(graph.tensors[c.weight.node], ridge) for c in consumers})


def _find_consumers(widths: Widths, changes: Mapping[str, Change]) -> list[_Consumer]:
    """Return the weights that are summed over along changed widths, and may take over what goes."""
    graph = widths.graph
    found: dict[Value, _Consumer] = {}
    for name, change in changes.items():
        width = widths[name]
        gone = torch.tensor(sorted(set(range(width.size)) - set(change.source)), dtype=torch.long)
        for id_, value in relate(widths, width).ends:
            node = graph.node(id_)
            if node.arguments.get("input") != value or not _takes_over(graph, node):
                continue
            weight = node.operand("weight")
            axis = _axis(graph, node, weight)
            size = widths.axes[value][axis].size
            if size > LARGEST:
                continue
            if weight not in found:
                groups = node.argument("groups") if "conv" in node.op else 1
                assert isinstance(groups, int)
                found[weight] = _Consumer(weight, "transpose" in node.op, groups, torch.zeros(size, dtype=torch.bool))
            consumer = found[weight]
            consumer.inputs[value] = axis
            consumer.removed[positions(widths.axes[value][axis], width.atom, gone)] = True
    return list(found.values())


def _axis(graph: Graph, node: Node, weight: Value) -> int:
    """Return the axis of a layer's input along which it is summed over, counted from the first."""
    source = node.operand("input")
    rank = len(graph.node(source.node).tensor_type(source.index).shape)
    return rank + 1 - graph.tensors[weight.node].dim()


def _takes_over(graph: Graph, node: Node) -> bool:
    """Say whether a call is linear in a stored weight that calls like it alone use."""
    weight = node.arguments.get("weight")
    if not makes_linearly(node) or not isinstance(weight, Value) or weight.node not in graph.tensors:
        return False
    uses = [(u.argument, graph.node(u.node)) for u in graph.uses(weight)]
    alike = {(argument, user.op, user.arguments.get("groups")) for argument, user in uses}
    return len(alike) == 1
