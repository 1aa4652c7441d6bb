"""Graphs whose inputs may have several sizes: rewrites keep them at each, and scores are those of a graph for one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archir.api import score
from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.errors import GraphError, ScoreError
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import apply_together
from archir.scoring.batches import bind_batches, cut_up
from archir.scoring.objective import make_objective
from archir.testing import check_widths, evaluate, relative_difference
from frontends.pytorch import trace
from passes.catalog import PASSES
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.any_size import MODELS, AnySize
from tests.morphisms.every import SPLICES, inject, outputs_of, some_sites

KINDS: tuple[Morphism, ...] = (*SPLICES, Split(), Prune(), Widen(count=2), PASSES["merge"]())  # type: ignore[arg-type]
"""Every kind of morphism."""


@cache
def captured(name: str) -> Graph:
    return MODELS[name].graph()


def inputs(model: AnySize, sizes: Mapping[str, int], batch: int = 3, seed: int = 0) -> Tensor:
    found = model.inputs(batch, sizes, seed)
    return found.double() if found.is_floating_point() else found


def labelled(model: AnySize, graph: Graph, sizes: Mapping[str, int], batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a batch of some sizes with random labels for whatever the model returns."""
    x = inputs(model, sizes, batch, seed)
    with torch.no_grad():
        made = graph.module().eval()(x)
    shape = {"": (batch,), "last": made.shape[:-1], "second": (batch, *made.shape[2:])}[model.per_position]
    return x, torch.randint(0, 5, tuple(shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "name", [*(n for n in MODELS if n != "windows"), pytest.param("windows", marks=pytest.mark.slow)]
)
def test_widths_are_what_they_claim_to_be_at_sizes_of_no_example(name: str) -> None:
    graph, model = captured(name), MODELS[name]
    assert [str(size) for size in graph.inputs[0].results[0].shape if not isinstance(size, int)] == [  # type: ignore[union-attr]
        "B",
        *model.dynamic.values(),
    ]
    verdicts = check_widths(graph, (inputs(model, model.sizes[1]),), units=1)
    assert verdicts and [problem for verdict in verdicts for problem in verdict.problems] == []


@pytest.mark.parametrize("name", MODELS)
def test_every_morphism_keeps_the_function_and_its_delta_is_exact_at_every_size(name: str) -> None:
    graph, model = captured(name), MODELS[name]
    known = [(x, evaluate(graph, [x])) for x in (inputs(model, sizes) for sizes in model.sizes[:2])]
    seen = 0
    for morphism in KINDS:
        for site in some_sites(morphism, graph, 2):
            after = site.members[0].apply(graph)
            keeps = morphism.preserves == "the function"
            perturbation = None if isinstance(morphism, WidthMorphism) else morphism.perturbation(graph, site)
            assert not isinstance(perturbation, Miss)
            for x, before in known:
                expected = outputs_of(graph, before)
                found = outputs_of(after, evaluate(after, [x]))
                if keeps:
                    assert relative_difference(found, expected) < 1e-9, f"{morphism.name} {site.label}"
                if perturbation is not None:
                    theta = perturbation.initial_theta(before, 1)
                    changed = apply_together(graph, [(site.members[0], theta or None)])
                    moved = outputs_of(changed, evaluate(changed, [x]))
                    injected = inject(graph, before, perturbation.delta(before, theta))
                    assert relative_difference(injected, moved) < 1e-9, f"{morphism.name} {site.label}"
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("name", ["encoder", "recurrent", "unet"])
def test_scores_are_those_of_a_graph_for_one_size(name: str) -> None:
    graph, model = captured(name), MODELS[name]
    sizes = model.sizes[1]
    static = model.graph(sizes)
    batches = [labelled(model, graph, sizes, 4, seed) for seed in range(2)]
    assert cost(graph, sizes=sizes) == cost(static)
    # Those whose θ begins with what is drawn for the numbers of new nodes are left out: these differ.
    kinds = [m for m in KINDS if m.name in ("split", "prune", "widen", "merge", "skip-connection")]
    options = {"morphisms": kinds, "steps": 3, "refine": 8, "learn": batches[:1], "seed": 0}
    one, other = (score(g, batches, **options) for g in (graph, static))  # type: ignore[arg-type]
    shown = [[(s.candidate.family.morphism.name, s.candidate.cost.parameters) for s in found] for found in (one, other)]
    assert shown[0] == shown[1] and len(shown[0]) > 20
    for left, right in zip(one, other, strict=True):
        assert left.predicted == pytest.approx(right.predicted, rel=1e-9, abs=1e-14)
    refined = [[s.candidate for s in found if s.refined][:4] for found in (one, other)]
    joint = [found.joint(found.choose(k=3)) for found in (one, other)]
    assert len(refined[0]) == 4
    assert joint[0] == pytest.approx(joint[1], rel=1e-9)


@pytest.mark.parametrize("name", ["encoder", "decoder", "fully_convolutional", "windows"])
def test_batches_of_several_sizes_are_scored_together(name: str) -> None:
    """The score of a removal on batches of several sizes is the mean of those on each, by their examples."""
    graph, model = captured(name), MODELS[name]
    batches = [labelled(model, graph, sizes, 2 + i, i) for i, sizes in enumerate(model.sizes[:2])]
    together = {s.spec: s for s in score(graph, batches, morphisms="prune", refine=0)}
    apart = [{s.spec: s for s in score(graph, [batch], morphisms="prune", refine=0)} for batch in batches]
    assert len(together) > 8
    for spec, found in together.items():
        mean = 0.0
        for (_, y), one in zip(batches, apart, strict=True):
            alone = one[spec].first_order
            assert alone is not None
            mean += len(y) * alone / 5
        assert found.first_order == pytest.approx(mean, rel=1e-9, abs=1e-14)


def test_an_input_along_another_axis_than_the_examples_is_not_cut() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            found: Tensor = self.head(F.relu(self.inner(x + shift[:, None]))).mean(1)
            return found

    x, shift = torch.randn(5, 6, 4), torch.randn(6)
    graph = trace(Shifted().eval(), (x, shift), dynamic={"x": {1: "T"}})
    assert [str(node.results[0]) for node in graph.inputs] == ["f32[B, T, 4]", "f32[T]"]
    objective = make_objective(graph, "cross_entropy")
    for batch in (6, 4):  # as many examples as steps, and fewer
        given = (torch.randn(batch, 6, 4), shift), torch.zeros(batch, dtype=torch.int64)
        (bound,) = bind_batches(objective.program, [given])
        parts = cut_up(objective.program, bound, 2)
        shapes = [[t.shape[0] for t in part.inputs.values()] for part in parts]
        assert shapes == [[batch // 2, 6]] * 2


def test_costs_are_told_for_the_sizes_of_the_example_or_for_others() -> None:
    graph, model = captured("encoder"), MODELS["encoder"]
    assert graph.signature.sizes == (("T", 7),)
    assert cost(graph) == cost(graph, sizes={"T": 7}) != cost(graph, sizes={"T": 12})
    assert cost(graph, 2, {"T": 12}).flops == 2 * cost(graph, sizes=model.sizes[2]).flops
    site = next(iter(Split().sites(graph)))
    after = site.members[0].apply(graph)
    assert after.signature.sizes == graph.signature.sizes
    assert site.members[0].name == "split" and cost(after).flops > cost(graph).flops
    with pytest.raises(GraphError, match=r"no input has the size S(.|\n)*T is 0"):
        cost(graph, sizes={"S": 3, "T": 0})


def test_a_batch_without_the_sizes_a_graph_takes_is_refused() -> None:
    graph = captured("unet")
    with pytest.raises(ScoreError, match=r"should be f64\[B, 3, H, W\]"):
        score(graph, [(torch.randn(2, 4, 8, 8).double(), torch.zeros(2, 8, 8, dtype=torch.int64))])
    assert {w.size for w in infer_widths(graph)} == {4, 6}
