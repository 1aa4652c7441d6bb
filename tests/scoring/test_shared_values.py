"""Widths whose values all examples share: each estimator against its dense twin, the true loss, and other captures."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

import archir
from archir.axes.infer import infer_widths
from archir.ir.graph import Graph
from archir.ir.types import is_float
from archir.rewrite.fresh_perturbation import FreshPerturbation
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.pipeline import apply_together
from archir.rewrite.subgraph import members_of
from archir.rewrite.theta import Key, Theta
from archir.scoring import shared_values
from archir.scoring.batches import bind_batches, cut_up
from archir.scoring.chunks import singly
from archir.scoring.families import Family, find_families
from archir.scoring.joint import screen_jointly
from archir.scoring.learn import Learner
from archir.scoring.losses import find_loss
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.score import score
from archir.scoring.screen import screen
from archir.testing import evaluate, randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen, WidenPerturbation
from tests.scoring.dense import member_of, pushed

EXAMPLES = 5


class Biased(nn.Module):
    """Two layers get one bias each position, which a net makes of a table; the second, a weight of two factors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 2))
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 4)
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 2)
        self.up, self.down = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.outer(torch.tanh(self.inner(self.table)))
        h = torch.tanh(self.first(x) * bias)
        h = torch.tanh(nn.functional.linear(h, self.up @ self.down) + torch.sigmoid(bias))
        return cast(Tensor, self.last(h.mean(1)))


class Paired(nn.Module):
    """Products of what one net makes of each example with what another makes of all, along no axis of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.right = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return cast(Tensor, self.left(x) @ self.right(y).mT)


def setting(kind: str) -> tuple[Graph, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    if kind == "paired":
        inputs = torch.randn(EXAMPLES, 3), torch.randn(EXAMPLES, 3)
        return prepared(Paired(), *inputs, static=True)
    return prepared(Biased(), torch.randn(EXAMPLES, 3, 2), static=kind == "static")


def prepared(model: nn.Module, *inputs: Tensor, static: bool) -> tuple[Graph, tuple[Tensor, ...]]:
    graph = randomise(trace(model.eval(), inputs, static_batch=static).to(torch.float64))
    return graph, tuple(x.double() for x in inputs)


class Case:
    """A model with targets, its families, θ, and what every member does to the outputs."""

    def __init__(self, kind: str) -> None:
        self.graph, self.inputs = setting(kind)
        self.values = evaluate(self.graph, self.inputs)
        (value,) = self.graph.output.values
        self.output: Tensor = self.values[value]
        self.targets = torch.randn_like(self.output)
        self.families: list[Family] = find_families(self.graph, (Split(), Prune(), Widen(count=2)))[0]
        self.perturbations: list[Perturbation] = [f.perturbation for f in self.families]
        self.thetas: list[Theta] = [dict(p.initial_theta(self.values, 1)) for p in self.perturbations]
        self.places = [(f, m) for f, p in enumerate(self.perturbations) for m in range(p.members)]
        self.objective = make_objective(self.graph, "mse")
        self.batches = [(self.inputs, self.targets)]
        self.shared = [any(m.example_axis is None for m in p.edges.values()) for p in self.perturbations]

    def moved(self) -> Tensor:
        deltas = [p.delta(self.values, t) for p, t in zip(self.perturbations, self.thetas, strict=True)]
        each = [member_of(self.perturbations[f], deltas[f], m) for f, m in self.places]
        return torch.stack([pushed(self.graph, self.values, one) for one in each])

    def loss(self, outputs: Tensor) -> float:
        return float(find_loss("mse").mean(outputs, self.targets))


@pytest.mark.parametrize("kind", ["dynamic", "static", "paired"])
def test_all_estimators_are_their_dense_twins(kind: str) -> None:
    case = Case(kind)
    assert 0 < sum(case.shared) < len(case.shared)
    u, count = case.moved(), case.output[0].numel()
    first = (u * (2 / count) * (case.output - case.targets).flatten(1)).sum(2).mean(1)
    gram = torch.einsum("cno,dno->cd", u, u) * 2 / count / EXAMPLES
    found = refine(case.objective, case.perturbations, case.thetas, singly(case.places), case.batches)
    assert torch.allclose(found.first_order, first, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.gram, gram, rtol=1e-9, atol=1e-12)
    exact = Curvature.EXACT
    screened = screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=exact)
    assert torch.allclose(torch.cat([s.first_order for s in screened]), first, rtol=1e-9, atol=1e-12)
    assert torch.allclose(torch.cat([s.curvature for s in screened]), gram.diagonal(), rtol=1e-9, atol=1e-12)
    joint = screen_jointly(case.objective, case.perturbations, case.thetas, case.batches, curvature=exact)
    assert torch.allclose(joint.gram, gram, rtol=1e-9, atol=1e-12)
    groups = [case.places[start::3] for start in range(3)]
    sets = screen_jointly(case.objective, case.perturbations, case.thetas, case.batches, curvature=exact, groups=groups)
    united = torch.stack([u[start::3].sum(0) for start in range(3)])
    assert torch.allclose(sets.gram, torch.einsum("cno,dno->cd", united, united) * 2 / count / EXAMPLES, rtol=1e-9)
    some = list(range(0, len(u), 3))
    changed = case.loss(case.output + u[some].sum(0).reshape(case.output.shape)) - case.loss(case.output)
    assert found.linearised(some) == pytest.approx(changed, rel=1e-9)


def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def test_examples_that_are_coupled_make_one_unit() -> None:
    case = Case("paired")
    u, targets = case.moved().flatten(1), torch.arange(EXAMPLES)
    at = case.output.flatten()

    def loss(outputs: Tensor) -> Tensor:
        return contrast(outputs.reshape(EXAMPLES, -1), targets)

    first, gram = u @ torch.func.grad(loss)(at), u @ torch.func.hessian(loss)(at) @ u.mT
    objective, batches = make_objective(case.graph, archir.coupled(contrast)), [(case.inputs, targets)]
    exact = Curvature.EXACT
    screened = screen(objective, case.perturbations, case.thetas, batches, curvature=exact)
    assert torch.allclose(torch.cat([s.first_order for s in screened]), first, rtol=1e-9, atol=1e-12)
    joint = screen_jointly(objective, case.perturbations, case.thetas, batches, curvature=exact)
    refined = refine(objective, case.perturbations, case.thetas, singly(case.places), batches)
    assert torch.allclose(joint.gram, gram, rtol=1e-9, atol=1e-12)
    assert torch.allclose(refined.gram, gram, rtol=1e-9, atol=1e-12)


def born(perturbation: Perturbation) -> dict[Key, Tensor]:
    """Return what fresh units hold as they are born."""
    if isinstance(perturbation, FreshPerturbation):
        return {key: perturbation.places[key].born for key in perturbation.theta if isinstance(key, int)}
    assert isinstance(perturbation, WidenPerturbation)
    return {key: perturbation.fixed[key] for key in perturbation.theta if isinstance(key, int)}


@pytest.mark.parametrize("kind", ["dynamic", "paired"])
def test_the_prediction_has_the_slope_of_the_true_loss(kind: str) -> None:
    """Along a change of θ of several widths at once, such as examples share and such as they do not."""
    case, step = Case(kind), 1e-5
    grown = [i for i, f in enumerate(case.families) if isinstance(f.morphism, Widen)]
    assert {case.shared[i] for i in grown} == {True, False}
    start = {i: born(case.perturbations[i]) for i in grown}
    torch.manual_seed(1)
    along = {i: {key: torch.randn_like(t) for key, t in start[i].items()} for i in grown}

    def at(scale: float) -> dict[int, dict[Key, Tensor]]:
        return {i: {key: t + scale * along[i][key] for key, t in start[i].items()} for i in grown}

    def true(scale: float) -> float:
        rewrites = [(case.families[i].site.members[0], theta) for i, theta in at(scale).items()]
        after = apply_together(case.graph, rewrites)
        return case.loss(evaluate(after, case.inputs)[after.output.values[0]])

    def predicted(scale: float) -> float:
        thetas = [at(scale).get(i, t) for i, t in enumerate(case.thetas)]
        found = screen(case.objective, case.perturbations, thetas, case.batches)
        return sum(float(found[i].first_order) for i in grown)

    slope = (true(step) - true(-step)) / (2 * step)
    assert (predicted(step) - predicted(-step)) / (2 * step) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_learning_follows_the_slope_of_the_estimate(together: bool) -> None:
    case, step = Case("dynamic"), 1e-6
    chosen = [(i, m) for i, m in case.places if case.thetas[i] and m < 2]
    options = ScoreOptions(steps=1000, rate=1e-9, curvature=Curvature.EXACT)

    def value(scale: float) -> tuple[float, Learner]:
        thetas = [{k: t * (1 + scale) for k, t in theta.items()} for theta in case.thetas]
        members = chosen if together else None
        learner = Learner(case.objective, case.perturbations, options, start=thetas, together=members)
        return learner.step(case.batches[0]), learner

    _, learner = value(0)
    slope = (value(step)[0] - value(-step)[0]) / (2 * step)
    found = 0.0
    for family, (before, after) in enumerate(zip(case.thetas, learner._thetas, strict=True)):
        gradients = [(before[key] * t.grad).sum() for key, t in after.items() if t.grad is not None]
        assert not case.thetas[family] or gradients
        found += float(sum(gradients))
    assert found == pytest.approx(slope, rel=1e-6)


def test_one_batch_size_and_any_give_the_same_scores() -> None:
    def found(case: Case) -> list[Tensor]:
        return [e.predicted for e in screen(case.objective, case.perturbations, case.thetas, case.batches)]

    fixed, free = Case("static"), Case("dynamic")
    assert [f.label for f in fixed.families] == [f.label for f in free.families]
    for left, right in zip(found(fixed), found(free), strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-12)
    for case, parts in ((fixed, 1), (free, 2)):
        (batch,) = bind_batches(case.objective.program, case.batches)
        assert len(cut_up(case.objective.program, batch, 2)) == parts


def test_gradients_of_few_examples_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dynamic")
    expected = screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=Curvature.EXACT)
    for most in (1, 100):
        monkeypatch.setattr(shared_values, "AT_ONCE", most)
        found = screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=Curvature.EXACT)
        for left, right in zip(found, expected, strict=True):
            assert torch.allclose(left.predicted, right.predicted, rtol=1e-9, atol=1e-12)
            assert torch.allclose(left.stderr, right.stderr, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["dynamic", "paired"])
def test_gradmax_says_where_no_layer_sums_over_a_width(kind: str) -> None:
    case = Case(kind)
    options = ScoreOptions(steps=1)
    scores = score(case.objective, case.batches, morphisms=[Widen()], strategy="gradmax", options=options)
    assert {s.candidate.morphism.label for s in scores} == ({"w1"} if kind == "dynamic" else {"w0", "w2"})
    assert any("which is no layer with weights" in miss.reason for _, miss in scores.misses) == (kind == "paired")


class Sorted(nn.Module):
    """Rows of a batch in the order of one of their features."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        return cast(Tensor, self.outer(h[torch.argsort(h[:, 0])]))


def test_what_has_the_batch_of_an_input_is_not_shared_for_an_output_in_another_order() -> None:
    """Else each of its examples would be taken through all calls on the way by itself."""
    graph = trace(Sorted().eval(), torch.randn(EXAMPLES, 3))
    widths = infer_widths(graph)
    values = [v for node in graph.calls for v in node.made if is_float(graph.type_of(v))]
    seen = [members_of(widths, v, None).example_axis for v in values if widths.axes[v]]
    assert len(seen) > 4 and set(seen) == {0}
