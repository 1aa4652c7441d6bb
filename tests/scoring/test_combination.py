"""Which candidates of one graph go together."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from archir.errors import PassError
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.pipeline import rewrite_together
from archir.scoring.combination import Combination
from archir.scoring.families import Candidate, find_families
from frontends.pytorch import trace
from passes.deepen import Deepen
from passes.enlarge_kernel import EnlargeKernel
from passes.merge import Merge
from passes.parallel_branch import ParallelBranch
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of


def test_a_layer_does_not_go_with_a_change_of_the_kernel_it_is_modelled_on() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    graph = trace(net, (torch.randn(2, 1, 8, 8),))
    families, _ = find_families(graph, (EnlargeKernel(), Deepen()))
    enlarge = [f for f in families if isinstance(f.morphism, EnlargeKernel)]
    deepen = [f for f in families if isinstance(f.morphism, Deepen)]
    modelled = [(e, d) for e in enlarge for d in deepen if not e.claims & d.claims]
    assert modelled
    refused = 0
    for pair in modelled:
        rewrites = [(f.site.members[0], f.perturbation.theta) for f in pair]
        one = Combination(graph).plus(Candidate(pair[0], (0,)))
        assert one is not None
        if one.plus(Candidate(pair[1], (0,))) is not None:
            rewrite_together(graph, rewrites)
            continue
        refused += 1
        with pytest.raises(PassError, match=r"does not fit(.|\n)*\[4, 4, 3, 3\] was learned, \[4, 4, 5, 5\] is there"):
            rewrite_together(graph, rewrites)
    assert refused


@pytest.mark.parametrize("name", ["resnet", "gpt", "mobilenet", "mlp"])
def test_what_goes_together_is_what_can_be_applied_together(name: str) -> None:
    """One more candidate is judged by what is known of those before it; all of them are applied anew to compare."""
    graph = graph_of(name)
    kinds = (Split(), Prune(), Merge(), Widen(count=2), ResidualBranch(hidden=2), ParallelBranch(), Deepen())
    families, _ = find_families(graph, kinds)
    every = [c for f in families for c in f.candidates]
    dice = random.Random(0)
    said = []
    for _ in range(4):
        combination = Combination(graph)
        for candidate in dice.sample(every, min(len(every), 25)):
            more = combination.plus(candidate)
            said.append(more is not None)
            assert said[-1] == applies_with(combination, candidate)
            combination = more or combination
        spliced = [m for m in combination.members if not isinstance(m.morphism, WidthMorphism)]
        claimed = [call for m in spliced for call in m.family.claims]
        assert len(set(claimed)) == len(claimed) and set(claimed) == combination.claimed
    assert True in said and False in said


def applies_with(combination: Combination, candidate: Candidate) -> bool:
    """Say whether candidates can be applied in one go, θ included where there is one for each of them."""
    members = [*combination.members, candidate]
    if candidate.morphism in [m.morphism for m in combination.members]:
        return False
    if not isinstance(candidate.morphism, WidthMorphism) and candidate.family.claims & combination.claimed:
        return False
    rewrites = [
        (m.morphism, None if isinstance(m.morphism, WidthMorphism) else m.family.perturbation.theta) for m in members
    ]
    try:
        rewrite_together(combination.graph, rewrites)
    except PassError:
        return False
    return True
