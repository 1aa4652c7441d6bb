"""What a patch adds to the cost of a graph, read off what it affects, is the difference between the two graphs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from archir import memory
from archir.cost import Cost, cost, cost_change
from archir.errors import PassError
from archir.ir.graph import Patch
from archir.memory import Memory
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import apply_together
from archir.rewrite.set_cost import cost_of_set
from passes.catalog import PASSES
from passes.merge import Merge
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.squeeze_excite import SqueezeExcite
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.zoo import ZOO
from tests.morphisms.every import SPLICES

EVERY: tuple[Morphism, ...] = (*SPLICES, Split(), Prune(), Widen(count=3), Merge())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_change_of_the_cost_is_the_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, seen = graph_of(name), Counter[bool]()
    insertion = Memory._insertion

    def look(self: Memory, patch: Patch, new: list[int]) -> int | None:
        found = insertion(self, patch, new)
        seen[found is not None] += 1
        return found

    monkeypatch.setattr(memory.Memory, "_insertion", look)
    costs = {batch: cost(graph, batch) for batch in (1, 3)}
    for morphism in EVERY:
        sites = list(morphism.sites(graph))
        for site in sites[:: max(1, len(sites) // 3)]:
            patch = site.members[0].rewrite(graph, site.found)
            for batch, before in costs.items():
                assert cost_change(patch, batch) == cost(patch.after, batch) - before, f"{morphism.name} {site.label}"
    if name in ("resnet", "gpt", "mlp", "vgg", "mobilenet"):
        assert seen[True] > 4 * seen[False], seen
    if name in ("vit", "siamese", "encoder"):
        assert seen[False], seen


@pytest.mark.parametrize("name", ["resnet", "gpt", "mobilenet", "shufflenet", "unet", "densenet", "lstm", "encoder"])
def test_the_cost_of_a_set_is_read_off_sizes(name: str) -> None:
    """Sets of changes of widths, with and without splices, on weights that hold no numbers."""
    graph, dice = graph_of(name), random.Random(0)
    hollow = graph.with_stored({i: t.to("meta") for i, t in graph.tensors.items()})
    widths = [m for morphism in (Split(), Prune(), Widen(count=2)) for s in morphism.sites(graph) for m in s.members]
    splices = [s.members[0] for morphism in (ResidualBranch(), SqueezeExcite()) for s in morphism.sites(graph)]
    counted = 0
    for count in (1, 3, 8, 20, 50):
        chosen = dice.sample(widths, min(count, len(widths))) + dice.sample(splices, min(count % 3, len(splices)))
        try:
            expected = cost(apply_together(graph, [(m, None) for m in chosen]))
        except PassError:
            continue
        assert cost_of_set(graph, chosen) == expected
        counted += 1
        of_widths = [m for m in chosen if isinstance(m, WidthMorphism)]
        assert cost_of_set(hollow, of_widths) == cost(apply_together(graph, [(m, None) for m in of_widths]))
    assert counted > 2


def test_simplifications_and_sequences_are_counted_alike() -> None:
    for name in ("resnet", "gpt", "unet"):
        graph = graph_of(name)
        found = PASSES["simplify"]().patch(graph)
        for morphism in (*SPLICES, Split()):
            site = next(iter(morphism.sites(found.after)), None)
            if site is not None:
                found = found.then(site.members[0].rewrite(found.after, site.found))
        assert len(found.after.history) > 3
        assert cost_change(found) == cost(found.after) - cost(graph)
        assert not isinstance(found, Miss) and cost_change(found) != Cost()
