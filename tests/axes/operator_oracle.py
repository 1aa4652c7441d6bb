"""Checks what is inferred about one call by running it: on permuted, removed and repeated units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archir.axes.infer import infer_widths
from archir.axes.positions import gather_index, unit_index
from archir.axes.widths import Width, Widths
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.rewrite.changes import Change
from archir.rewrite.equations import Variable, solve
from archir.rewrite.miss import Miss
from archir.rewrite.multiplicity import Exponents, relate
from archir.rewrite.reindex import Reindexing, reindex
from archir.testing import evaluate, relative_difference, zeroed

TOLERANCE = 1e-9


def problems_of(graph: Graph, node: Node) -> list[str]:
    """Return what is wrong with the axes of the results of a call whose tensor operands are stored.

    The results must not be outputs of the graph, so that their axes are not frozen for that.
    """
    widths = infer_widths(graph)
    old = evaluate(graph, [torch.ones(2, dtype=torch.float64)])
    # Some operators return empty tensors in place of results that only training needs.
    every = [Value(node.id, i) for i in range(len(node.results)) if Value(node.id, i) in widths.axes]
    results = [v for v in every if old[v].shape == node.tensor_type(v.index).shape]
    found: list[str] = []
    for width in widths:
        found += _moved(widths, width, results, old)
        found += _repeated(widths, width, results, old)
    return found


def _gathered(widths: Widths, value: Value, tensor: Tensor, width: Width, source: tuple[int, ...]) -> Tensor:
    """Return a tensor with the units of a width gathered along all its axes."""
    for axis, term in enumerate(widths.axes[value]):
        index = gather_index(term, {width.atom: torch.tensor(source)}, {})
        tensor = tensor.index_select(axis, index)
    return tensor


def _moved(widths: Widths, width: Width, results: list[Value], old: Mapping[Value, Tensor]) -> list[str]:
    """Permuting units permutes results; removing a unit removes it from the results of zeros in its place."""
    last = width.size - 1
    order, kept = (last, *range(last)), tuple(range(last))
    zero = evaluate(zeroed(widths, {width.name: [last]}), [torch.ones(2, dtype=torch.float64)])
    found: list[str] = []
    for what, source, right in (("permuted", order, old), ("removed", kept, zero)):
        new = _run(widths, width, Reindexing(widths, {width.name: Change(source)}, {}))
        for value in results:
            expected = _gathered(widths, value, right[value], width, source)
            if new[value].shape != expected.shape:
                found.append(f"{width.name} {what}: {list(new[value].shape)}, not {list(expected.shape)}")
            elif what == "permuted" or not width.roles & {"norm", "reduced"}:
                error = relative_difference([new[value]], [expected])
                found += [f"{width.name} {what}: off by {error:.2g}"] if error > TOLERANCE else []
    return found


def _run(widths: Widths, width: Width, plan: Reindexing) -> Mapping[Value, Tensor]:
    return evaluate(reindex(plan, by="check").after, [torch.ones(2, dtype=torch.float64)])


def _repeated(widths: Widths, width: Width, results: list[Value], old: Mapping[Value, Tensor]) -> list[str]:
    """Repeated units do what exponents say, as they are solved and with each exponent of a result forced to one."""
    found: list[str] = []
    free = relate(widths, width)
    wanted: list[Variable | None] = [None, *(v for value in results for v in free.variables(value))]
    for forced in wanted:
        equations = relate(widths, width)
        if equations.miss:
            return found
        if forced is not None:
            equations.add(widths.graph.node(forced[0].node), 1, (forced, 1))
        stored = {Value(n.id) for n in widths.graph.parameters}
        solution = solve(equations, stored)
        if isinstance(solution, Miss):
            continue
        every = tuple(range(width.size))
        source = every * 2 if equations.uniform else (*every, 0, 0)
        of_stored = {v: solution.get(v, 0) for value in stored for v in equations.variables(value)}
        exponents = Exponents(of_stored, equations.uniform)
        plan = Reindexing(widths, {width.name: Change(source)}, {width.name: exponents})
        new = _run(widths, width, plan)
        counts = torch.bincount(torch.tensor(source)).double()
        for value in results:
            expected = _gathered(widths, value, old[value], width, source)
            for variable in equations.variables(value):
                _, axis, occurrence = variable
                unit = unit_index(widths.axes[value][axis], width.atom, occurrence)
                factor = torch.where(unit >= 0, counts[unit.clamp(min=0)] ** -solution.get(variable, 0), 1.0)
                index = gather_index(widths.axes[value][axis], {width.atom: torch.tensor(source)}, {})
                shape = [-1 if d == axis else 1 for d in range(expected.dim())]
                expected = expected * factor[index].reshape(shape)
            error = relative_difference([new[value]], [expected])
            if error > TOLERANCE:
                found.append(f"{width.name} repeated, {forced or 'free'}: off by {error:.2g}")
    return found
