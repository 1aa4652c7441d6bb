"""Which widths of a model grow, by how many units, with the function kept, and which of them are scored."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from archir.axes.infer import infer_widths
from archir.axes.widths import Width, Widths
from archir.errors import ArchirError
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site, UnitMorphism
from archir.testing import Evaluation, evaluate, leaves_of, outputs, randomise, relative_difference
from passes.split import Split
from passes.widen import Widen
from tools.zoo_models import captured

KEPT = 1e-9
"""The largest relative difference of the outputs, in float64, of a function that is kept."""


@dataclass(frozen=True)
class GrowthReach:
    """How many widths of a model grow.

    Attributes:
        free: the free widths.
        one: those that grow by one unit.
        tenth: those that grow by a tenth, rounded up.
        doubled: those that grow to their double.
        scored: those for which some of this is scored, unit by unit or as one.
        nothing: those with nothing to score: no output depends on their units, or these are in no trained tensor.
        reasons: why one does not grow by one unit or is not scored, by width.
    """

    free: int
    one: int
    tenth: int
    doubled: int
    scored: int
    nothing: int
    reasons: dict[str, str] = field(default_factory=dict)


def growth_reach(name: str) -> GrowthReach | str:
    """Return how many widths of a model of the zoos grow, or why it cannot be captured.

    Args:
        name: of the model, by family and name.
    """
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced, example = captured(name)
        except ArchirError as error:
            return error.what
        graph = randomise(traced.to(torch.float64), 0)
        inputs = leaves_of(example.inputs(), example.kwargs())
        known = Evaluation(graph, evaluate(graph, inputs))
        right = [known.values[value] for value in graph.output.values]
        widths = infer_widths(graph)

        def kept(candidate: UnitMorphism) -> str:
            """Return why a rewrite does not do, empty if it keeps the function."""
            try:
                after = candidate.apply(graph)
            except ArchirError as error:
                return error.why or error.what
            off = relative_difference(outputs(after, inputs, known=known), right)
            return "" if off <= KEPT else f"off by {off:.2g}"

        return _reach(widths, kept)


def _reach(widths: Widths, kept: Callable[[UnitMorphism], str]) -> GrowthReach:
    counts, reasons = [0, 0, 0, 0, 0], dict[str, str]()
    needed = _needed(widths.graph)
    for width in widths:
        why = [_first(kept, candidates) for candidates in _ways(width)]
        nothing = _nothing(widths.graph, width, needed)
        scored = nothing or _scored(widths, width)
        for i, reason in enumerate((*why, scored, "" if nothing else "something")):
            counts[i] += not reason
        if why[0] or scored:
            reasons[width.name] = without_files(why[0] or (nothing or f"not scored: {scored}"))
    one, tenth, doubled, scores, none = counts
    return GrowthReach(len(tuple(widths)), one, tenth, doubled, scores, none, reasons)


def _needed(graph: Graph) -> frozenset[int]:
    """Return the nodes that some output depends on."""
    needed = {graph.output.id}
    for node in reversed(graph.nodes):
        if node.id in needed:
            needed.update(value.node for value in node.values)
    return frozenset(needed)


def _nothing(graph: Graph, width: Width, needed: frozenset[int]) -> str:
    """Return why there is nothing to score about more units of a width, empty if there is something.

    The effect of units no output depends on is zero whatever they hold. Where they stand in no trained tensor they
    learn nothing, and the function stays as it is.
    """
    places = [graph.node(place.node) for place in width.places]
    if not any(node.id in needed for node in places):
        return "nothing to score: no output depends on it"
    return "" if any(node.is_trainable for node in places) else "nothing to score: it is in no trained tensor"


def without_files(reason: str) -> str:
    """Return a reason without the files it names, which are others on other machines."""
    return re.sub(r" /\S+:\d+", "", reason)


def _ways(width: Width) -> Iterator[tuple[UnitMorphism, ...]]:
    """Yield the ways in which a width may grow: by one unit, by a tenth, to its double."""
    for count in (1, math.ceil(width.size / 10), width.size):
        yield Split(width.name, tuple(range(count))), Widen(width.name, count)


def _first(kept: Callable[[UnitMorphism], str], candidates: tuple[UnitMorphism, ...]) -> str:
    """Return nothing if some candidate does, or why the last does not."""
    why = ""
    for candidate in candidates:
        why = kept(candidate)
        if not why:
            break
    return why


def _scored(widths: Widths, width: Width) -> str:
    """Return nothing if units of a width can be scored, or why fresh ones cannot."""
    why = ""
    for kind in (Split(), Widen()):
        members = tuple(kind.units_of(widths, width))
        found = (
            kind.perturbation(widths.graph, Site(width.name, members, widths)) if members else kind.miss(widths, width)
        )
        if members and not isinstance(found, Miss):
            return ""
        why = found.reason if isinstance(found, Miss) else "no unit can be taken alone"
    return why
