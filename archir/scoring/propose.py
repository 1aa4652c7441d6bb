"""Proposes composites: pairs of rewrites that scored well, as one candidate each."""

from __future__ import annotations

import itertools

from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.compose import Compose
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.reference import Later
from archir.scoring.families import Candidate
from archir.scoring.scores import Scores


def propose_composites(scores: Scores, most: int) -> tuple[Compose, ...]:
    """Return composites of two rewrites each, of those that scored best alone.

    At least one of the two is no change of a width: changes of widths already go together in a set, while rewrites
    that claim the same calls do not, and what one brings the other cannot use. The second is done where the first has
    left its place.

    Args:
        scores: what is predicted of single candidates; where nothing is, nothing is proposed.
        most: most composites.

    Returns:
        The composites, those of the best pairs first.

    Source: ours.
    """
    choice = sorted(scores.choice, key=lambda s: s.order)
    alone = [(s.candidate, s.predicted) for s in choice if s.predicted is not None and s.predicted < 0]
    best = [(c, predicted) for c, predicted in alone if not isinstance(c.morphism, Compose)]
    pairs = [
        (first + second, one, other)
        for (one, first), (other, second) in itertools.permutations(best[: 2 * most], 2)
        if not isinstance(one.morphism, WidthMorphism)
    ]
    pairs.sort(key=lambda pair: pair[0])
    found: list[Compose] = []
    for _, one, other in pairs:
        if len(found) == most:
            break
        composite = _compose(scores.graph, one, other)
        if composite is not None and not any(set(composite.steps) == set(known.steps) for known in found):
            found.append(composite)
    return tuple(found)


def _compose(graph: Graph, first: Candidate, second: Candidate) -> Compose | None:
    one: Morphism = first.morphism
    try:
        after = one.apply(graph)
        composite = Compose((one, second.morphism.followed(Later(graph, after))))
        return None if isinstance(composite.match(graph), Miss) else composite
    except PassError:
        return None
