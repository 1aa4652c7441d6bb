"""What sets of candidates cost, as tensors: a quadratic in the sizes of the widths, and what other rewrites add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from archir.axes.infer import infer_widths
from archir.axes.terms import Atom
from archir.axes.widths import Widths
from archir.cost import Cost, cost
from archir.ir.graph import Graph
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.set_cost import bytes_alive, effect_on_sizes, resizing_cost
from archir.scoring.budget import Budget
from archir.scoring.families import Candidate, Family
from archir.scoring.resources import PeakResource, QuadraticResource, Resource


@dataclass(frozen=True)
class CostModel:
    """What sets of candidates of a graph cost, by kinds of candidates that cost the same, and which go together.

    Parameters and FLOPs of layers are products of two widths, so the quadratic is exact for most sets of changes of
    widths. What other rewrites add is taken to be what they add alone.

    Attributes:
        kinds: the number of each candidate's kind, which is its family and how many members it has; `[candidates]`.
        limits: the resources that are limited, by name, with the limits.
        resources: what the empty set uses of each, and what candidates add; 1 is the limit.
        sizes: sizes of the widths that candidates change; `[widths]`.
        effects: what a candidate of each kind adds to them; `[kinds, widths]`.
        apart: which candidates do not go together as they change the same unit or call; `[candidates, candidates]`.
    """

    kinds: torch.Tensor
    limits: Mapping[str, int]
    resources: tuple[Resource, ...]
    sizes: torch.Tensor
    effects: torch.Tensor
    apart: torch.Tensor = field(repr=False)

    def used(self, cost: Cost) -> list[float]:
        """Return what a graph of some cost uses of each resource; 1 is the limit."""
        return [_part(float(getattr(cost, name)), limit) for name, limit in self.limits.items()]


def _part(amount: float, limit: int) -> float:
    """Return an amount as a part of its limit; one above a limit of 0 is measured in ones."""
    return 1 + (amount - limit) / max(limit, 1)


def model_costs(graph: Graph, candidates: Sequence[Candidate], budget: Budget) -> CostModel:
    """Return what sets of candidates cost.

    Args:
        graph: the graph they were found in.
        candidates: the candidates.
        budget: what is limited; a limit on latency is none on what is read off types.
    """
    alike: dict[tuple[Family, int], Candidate] = {}
    for candidate in candidates:
        alike.setdefault((candidate.family, len(candidate.members)), candidate)
    number = {kind: i for i, kind in enumerate(alike)}
    widths = infer_widths(graph)
    changes: list[Mapping[Atom, int]] = [
        effect_on_sizes(widths, m) if isinstance(m := c.morphism, WidthMorphism) else {} for c in alike.values()
    ]
    atoms = list(dict.fromkeys(a for change in changes for a in change))
    effects = torch.tensor([[float(c.get(a, 0)) for a in atoms] for c in changes], dtype=torch.float64)
    effects = effects.reshape(len(alike), len(atoms))
    spliced = [Cost() if change else c.cost for c, change in zip(alike.values(), changes, strict=True)]
    return CostModel(
        kinds=torch.tensor([number[c.family, len(c.members)] for c in candidates], dtype=torch.long),
        limits=budget.scarce,
        resources=_resources(graph, widths, atoms, effects, spliced, budget.scarce),
        sizes=torch.tensor([float(a.size) for a in atoms], dtype=torch.float64),
        effects=effects,
        apart=_apart(widths, candidates),
    )


def _resources(
    graph: Graph,
    widths: Widths,
    atoms: Sequence[Atom],
    effects: torch.Tensor,
    spliced: Sequence[Cost],
    limits: Mapping[str, int],
) -> tuple[Resource, ...]:
    """Return what is limited."""
    now = cost(graph)
    first, second = _derivatives(widths, atoms)
    found: list[Resource] = []
    for name, limit in limits.items():
        unit = max(limit, 1)
        more = torch.tensor([float(getattr(c, name)) for c in spliced], dtype=torch.float64) / unit
        if name == "peak_bytes":
            alive = torch.tensor(bytes_alive(widths, {}), dtype=torch.float64).reshape(-1)
            rows = [torch.tensor(bytes_alive(widths, {a: a.size + 1}), dtype=torch.float64) - alive for a in atoms]
            by_width = torch.stack(rows) if rows else torch.zeros(0, len(alive), dtype=torch.float64)
            found.append(PeakResource(1 + (alive - limit) / unit, effects @ by_width / unit + more[:, None]))
            continue
        slope = torch.tensor([float(getattr(c, name)) for c in first], dtype=torch.float64) / unit
        curve = torch.zeros(len(atoms), len(atoms), dtype=torch.float64)
        for (i, j), c in second.items():
            curve[i, j] = curve[j, i] = float(getattr(c, name)) / unit
        between = effects @ curve @ effects.mT
        alone = effects @ (slope - curve.diagonal() / 2) + between.diagonal() / 2 + more
        found.append(QuadraticResource(_part(float(getattr(now, name)), limit), alone, between))
    return tuple(found)


def _derivatives(widths: Widths, atoms: Sequence[Atom]) -> tuple[list[Cost], dict[tuple[int, int], Cost]]:
    """Return what one more unit of each width costs, and what one more of two costs beyond that."""
    near: dict[int, list[int]] = {}
    for i, atom in enumerate(atoms):
        for node in widths.nodes(widths.analysis.by_atom[atom]):
            near.setdefault(node, []).append(i)
    first = [resizing_cost(widths, {a: a.size + 1}) for a in atoms]
    second = {(i, i): resizing_cost(widths, {a: a.size + 2}) - first[i] - first[i] for i, a in enumerate(atoms)}
    for i, j in sorted({(i, j) for found in near.values() for i in found for j in found if j < i}):
        both = resizing_cost(widths, {atoms[i]: atoms[i].size + 1, atoms[j]: atoms[j].size + 1})
        second[i, j] = both - first[i] - first[j]
    return first, second


def _apart(widths: Widths, candidates: Sequence[Candidate]) -> torch.Tensor:
    """Return which candidates change one unit, bring fresh units to one width that do not add up, or claim one call."""
    holders: dict[object, list[int]] = {}
    for number, candidate in enumerate(candidates):
        for claim in _claims(widths, candidate):
            holders.setdefault(claim, []).append(number)
    found = torch.zeros(len(candidates), len(candidates), dtype=torch.bool)
    for numbers in holders.values():
        if len(numbers) > 1:
            index = torch.tensor(numbers)
            found[index[:, None], index] = True
    return found.fill_diagonal_(False)


def _claims(widths: Widths, candidate: Candidate) -> set[object]:
    morphism = candidate.morphism
    if not isinstance(morphism, WidthMorphism):
        return set(candidate.family.claims)
    found: set[object] = set()
    for name, change in morphism.changes(widths).items():
        uses = change.multiplicity(widths[name].size).tolist()
        found |= {(name, unit) for unit, used in enumerate(uses[: widths[name].size]) if used != 1}
        found |= {(name, unit) for pair in change.merged for unit in pair}
        if change.fresh and not change.adds_up:
            found.add((name, None))
    return found
