"""The joint model sampled in reverse mode, held to that of forward mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from archir.ir.graph import Graph
from archir.scoring.chunks import singly
from archir.scoring.joint import screen_jointly
from archir.scoring.objective import Curvature, Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.score import score
from archir.scoring.scores import Scores
from archir.scoring.screen import screen
from archir.scoring.strategies.context import ScoringContext, make_context
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split


class Net(nn.Module):
    """Two convolutions beside the identity, whose widths depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.inner(x).relu())
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net().double(), (torch.randn(2, 1, 5, 5, dtype=torch.float64),))


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(6, 1, 5, 5, generator=generator, dtype=torch.float64),
            torch.randint(3, (6,), generator=generator),
        )
        for _ in range(count)
    ]


def context(graph: Graph, options: ScoreOptions) -> ScoringContext:
    return make_context(
        make_objective(graph, "cross_entropy"), batches(), morphisms=(Split(), Prune()), options=options
    )


def test_with_exact_curvature_it_is_the_model_of_forward_mode(graph: Graph) -> None:
    found = context(graph, ScoreOptions(steps=2))
    places = [(f, m) for f, family in enumerate(found.families) for m in range(len(family.site.members))]
    forward = refine(found.streamed, found.perturbations, found.thetas, singly(places), found.batches)
    joint = screen_jointly(found.streamed, found.perturbations, found.thetas, found.batches, curvature=Curvature.EXACT)
    gram = joint.gram
    assert len(places) == len(gram) == 18
    first = torch.cat([e.first_order for e in joint.families])
    assert torch.allclose(first, joint.groups.first_order, rtol=1e-9, atol=1e-12)
    assert torch.allclose(first, forward.first_order, rtol=1e-9, atol=1e-12)
    assert torch.allclose(gram, forward.gram, rtol=1e-9, atol=1e-12)
    off_diagonal = gram - gram.diag().diag()
    assert off_diagonal.abs().max() > 0.1 * gram.diagonal().max(), (
        "nothing depends on anything, so the test says nothing"
    )


def test_its_mean_over_samples_is_that_model(graph: Graph) -> None:
    found = context(graph, ScoreOptions(steps=0))
    given = found.streamed, found.perturbations, found.thetas, found.batches
    exact = screen_jointly(*given, curvature=Curvature.EXACT).gram
    samples = torch.stack([screen_jointly(*given, seed=seed).gram for seed in range(200)])
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
    assert torch.equal(samples[0], samples[0].mT)


def test_alone_they_are_estimated_as_by_screening(graph: Graph) -> None:
    found = context(graph, ScoreOptions(steps=0))
    given = found.streamed, found.perturbations, found.thetas, found.batches
    alone, joint = screen(*given, seed=3), screen_jointly(*given, seed=3)
    for one, other in zip(alone, joint.families, strict=True):
        assert torch.equal(one.first_order, other.first_order) and torch.equal(one.curvature, other.curvature)
    assert torch.allclose(joint.gram.diagonal(), torch.cat([e.curvature for e in alone]), rtol=1e-12)


def test_where_training_has_settled_what_has_nothing_to_learn_has_no_first_order(graph: Graph) -> None:
    options = ScoreOptions(steps=2)
    plain, settled = (
        score(
            make_objective(graph, "cross_entropy"),
            batches(),
            morphisms=(Split(), Prune()),
            strategy="sampled",
            options=replace(options, settled=given),
        )
        for given in (False, True)
    )
    for s in plain:
        other = settled[s.spec]
        assert other.curvature == s.curvature
        assert other.first_order == (0.0 if s.spec.startswith("prune") else s.first_order)
    prunes = [s for s in settled if s.spec.startswith("prune")]
    assert prunes and all(s.predicted is not None and s.predicted >= 0 for s in prunes)
    assert settled.joint(prunes[:3]) >= 0
    assert any((s.first_order or 0) < 0 for s in plain if s.spec.startswith("prune"))


def test_no_gradient_of_the_loss_is_made_where_all_have_settled(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their curvature is the same: the samples are drawn alike."""

    def scored(settled: bool) -> Scores:
        options = ScoreOptions(steps=2, settled=settled)
        objective = make_objective(graph, "cross_entropy")
        return score(objective, batches(), morphisms=(Prune(),), strategy="sampled", options=options)

    plain = scored(False)
    monkeypatch.delattr(Objective, "gradient")
    settled = scored(True)
    assert len(settled) == len(plain) > 0
    assert all(s.first_order == 0 and s.curvature == plain[s.spec].curvature for s in settled)
    assert plain.refinement is not None and settled.refinement is not None
    assert torch.equal(plain.refinement.gram, settled.refinement.gram)


def test_sets_are_chosen_from_all_candidates(graph: Graph) -> None:
    scores = score(
        make_objective(graph, "cross_entropy"),
        batches(),
        morphisms=(Prune(),),
        strategy="sampled",
        options=ScoreOptions(steps=0, refine=1),
    )
    assert scores.refined == scores.candidates == len(scores) == 9
