"""Scores with the statistics of the batch: against training mode, and against Jacobians that couple its examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.api import score
from archir.axes.infer import infer_widths
from archir.errors import ScoreError
from archir.growing import engine
from archir.growing.examples import Examples
from archir.growing.grow import grow_graph
from archir.growing.growth import grow_once
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.recalibration import recalibrate
from archir.growing.training import Batch as TrainingBatch
from archir.growing.training import evaluate as measure
from archir.ir.graph import Graph
from archir.scoring.batch_statistics import with_batch_statistics
from archir.scoring.batches import Batch
from archir.scoring.budget import Budget
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.learn import Learner
from archir.scoring.losses import Loss, LossFunction, coupled, find_loss
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.program import Program
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from archir.testing import evaluate, randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.scoring.dense import member_of, pushed


class Net(nn.Module):
    """A small convolutional net: two batch normalisations in a row, and a residual connection."""

    def __init__(self, *, tracked: bool = True) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=tracked)
        self.inner, self.inner_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=tracked)
        self.outer, self.head = nn.Conv2d(4, 3, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        x = torch.tanh(x + self.outer(torch.tanh(self.inner_norm(self.inner(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Shallow(nn.Module):
    """A net that is linear behind its one width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.stem(x))).mean((2, 3)))
        return logits


@coupled
def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    """Every example is to be told from those of other classes."""
    same = (targets[:, None] == targets).to(outputs.dtype)
    return F.cross_entropy(outputs @ outputs.mT, same / same.sum(1, keepdim=True))


OPTIONS = GrowOptions(
    growth_steps=1,
    batch_size=40,
    learn_steps=30,
    score_examples=60,
    recalibrate_batches=3,
    batch_statistics=True,
    evaluate_every=0,
    optimiser=OptimiserOptions("sgd", rate=0.05),
)

LOSSES = [find_loss("cross_entropy"), contrastive]


def captured(model: nn.Module) -> Graph:
    torch.manual_seed(0)
    return randomise(trace(model, (torch.randn(3, 1, 5, 5),)).to(torch.float64))


def batches(sizes: tuple[int, ...] = (4, 6)) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 1, 5, 5, dtype=torch.float64, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in sizes
    ]


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


class Case:
    """A net with its families and their dense effects."""

    def __init__(self, loss: str | LossFunction | Loss) -> None:
        self.loss = find_loss(loss)
        self.objective = make_objective(captured(Net()), self.loss, batch_statistics=True)
        self.graph = self.objective.program.graph
        self.batches = batches()
        families, _ = find_families(self.graph, (Split(), Prune(), Widen(count=2), ResidualBranch(hidden=2)))
        self.perturbations = [f.perturbation for f in families]
        stored = evaluate(self.graph, [self.batches[0][0]])
        self.thetas = [dict(p.initial_theta(stored, 1)) for p in self.perturbations]
        self.chosen = [(f, m) for f, p in enumerate(self.perturbations) for m in range(p.members)]

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return `a` and `G`: every `u` is the derivative of all outputs of a batch for a change in all examples."""
        total, count = sum(len(t) for _, t in self.batches if isinstance(t, Tensor)), len(self.chosen)
        a, gram = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
        for inputs, targets in self.batches:
            assert isinstance(targets, Tensor)
            values = evaluate(self.graph, [inputs])
            (result,) = [v for _, v in self.graph.output.operands()]
            deltas = [p.delta(values, t) for p, t in zip(self.perturbations, self.thetas, strict=True)]
            rows = torch.stack(
                [
                    pushed(self.graph, values, member_of(self.perturbations[f], deltas[f], m)).flatten()
                    for f, m in self.chosen
                ]
            )

            def whole(flat: Tensor, targets: Tensor = targets) -> Tensor:
                return self.loss(flat.reshape(-1, 3), targets) * len(targets)

            flat = values[result].flatten()
            a += rows @ torch.func.grad(whole)(flat) / total
            gram += rows @ torch.func.jacrev(torch.func.grad(whole))(flat) @ rows.mT / total
        return a, gram

    def screened(self, curvature: Curvature, seed: int = 0) -> tuple[Tensor, Tensor]:
        found = screen(self.objective, self.perturbations, self.thetas, self.batches, curvature=curvature, seed=seed)
        return torch.cat([e.first_order for e in found]), torch.cat([e.curvature for e in found])


def test_outputs_are_those_of_training_mode_and_nothing_else_changes() -> None:
    graph = captured(Net())
    stored = {i: t.clone() for i, t in graph.tensors.items()}
    ((inputs, _),) = batches((5,))
    assert isinstance(inputs, Tensor)
    program = Program(graph, batch_statistics=True)
    (found,) = program(program.bind(inputs)).outputs
    assert close(found, graph.module().train()(inputs).detach())
    assert not torch.allclose(found, graph.module().eval()(inputs))
    assert all(torch.equal(t, graph.tensors[i]) for i, t in stored.items())
    changed = with_batch_statistics(graph)
    assert [n.id for n in changed.calls] == [n.id for n in graph.calls]
    assert changed.structure.numbers.keys() >= {n.id for n in graph.calls}
    assert all(changed.structure.numbers[n.id] == graph.structure.numbers[n.id] for n in graph.calls)
    places = {w.name: {p.parameter for p in w.places if "running" not in p.parameter} for w in infer_widths(graph)}
    assert places == {w.name: {p.parameter for p in w.places} for w in infer_widths(changed)}
    assert with_batch_statistics(changed) is changed and changed.history == graph.history


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_mode_runs_through_the_statistics(loss: str | LossFunction | Loss) -> None:
    case = Case(loss)
    a, gram = case.dense()
    found = refine(case.objective, case.perturbations, case.thetas, singly(case.chosen), case.batches)
    assert found.methods["aten.batch_norm.default"] == "jvp"
    assert close(found.first_order, a) and close(found.gram, gram)


def test_exact_screening_is_the_diagonal() -> None:
    case = Case("cross_entropy")
    a, gram = case.dense()
    first, second = case.screened(Curvature.EXACT)
    assert close(first, a) and close(second, gram.diagonal())


@pytest.mark.parametrize("loss", ["cross_entropy", F.cross_entropy])
def test_sampled_curvature_is_unbiased(loss: str | LossFunction | Loss) -> None:
    case = Case(loss)
    _, gram = case.dense()
    draws = torch.stack([case.screened(Curvature.SAMPLED, seed)[1] for seed in range(150)])
    error = (draws.mean(0) - gram.diagonal()).abs()
    assert bool((error <= 4.5 * draws.std(0) / len(draws) ** 0.5 + 1e-12).all())


def test_a_learning_step_is_what_screening_sums_up_to() -> None:
    case = Case("cross_entropy")
    case.batches = case.batches[:1]
    case.perturbations = [p for p in case.perturbations if p.theta]
    learner = Learner(case.objective, case.perturbations, ScoreOptions(curvature=Curvature.EXACT))
    case.thetas = [dict(t) for t in learner.thetas]
    first, second = case.screened(Curvature.EXACT)
    assert learner.step(case.batches[0]) == pytest.approx(float((first + second / 2).sum()), rel=1e-9)


@pytest.mark.parametrize("morphism", [Split(), Widen(count=2)])
def test_predictions_are_exact_where_the_rest_is_linear(morphism: Split | Widen) -> None:
    graph, given = captured(Shallow()), batches((5, 7, 6))
    scores = score(graph, given, morphisms=(morphism,), steps=5, rate=0.3, batch_statistics=True)
    chosen = list(scores)[:1]

    def mean_loss(module: nn.Module) -> float:
        losses = [(F.cross_entropy(module.train()(x), t), len(t)) for x, t in given if isinstance(t, Tensor)]
        return sum(float(v.detach()) * n for v, n in losses) / sum(n for _, n in losses)

    change = mean_loss(scores.apply(chosen).module()) - mean_loss(graph.module())
    assert abs(change) > 1e-4
    assert scores.linearised(chosen) == pytest.approx(change, rel=1e-9)
    assert scores.graph is graph and scores.cost_of(chosen).parameters - graph.parameter_count > 0


def test_statistics_of_the_batch_have_to_be_asked_for() -> None:
    graph = captured(Net(tracked=False))
    with pytest.raises(ScoreError, match="or score with batch_statistics=True"):
        score(graph, batches(), morphisms=(Split(),), steps=2)
    scores = score(graph, batches(), morphisms=(Split(),), steps=2, batch_statistics=True)
    assert scores.refined == len(scores) > 0
    with pytest.raises(ScoreError, match=r"aten\.dropout\.default is active"):
        noisy = trace(nn.Sequential(Always(), nn.Linear(4, 3)), (torch.randn(2, 4),))
        score(noisy, batches(), morphisms=(Split(),), batch_statistics=True)


class Always(nn.Module):
    """Dropout in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def test_growth_checks_with_the_statistics_it_scores_with() -> None:
    torch.manual_seed(0)
    examples = striped(360)
    parts = [examples.take(slice(i, i + 120)) for i in (0, 120, 240)]
    graph = trace(Net(), (torch.randn(3, 1, 5, 5),))
    loss, budget = find_loss("cross_entropy"), Budget(parameters=600)
    growth = grow_once(
        graph,
        train=parts[0],
        selection=parts[1],
        check=parts[2],
        loss=loss,
        budget=budget,
        options=OPTIONS,
        morphisms=(Split(), Widen(count=2)),
        seed=0,
    )
    assert growth.specs
    before, after = (
        measure(with_batch_statistics(g).module(), parts[2], loss, batch_size=40).loss for g in (graph, growth.graph)
    )
    assert growth.realised == pytest.approx(after - before, rel=1e-5)


def test_running_statistics_are_averaged_anew_after_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    averaged: list[nn.Module] = []

    def watched(module: nn.Module, fresh: Iterable[TrainingBatch], **given: Any) -> None:
        averaged.append(module)
        recalibrate(module, fresh, **given)

    monkeypatch.setattr(engine, "recalibrate", watched)
    torch.manual_seed(0)
    examples = striped(360)
    run = grow_graph(
        trace(Net(), (torch.randn(3, 1, 5, 5),)),
        train=examples.take(slice(0, 120)),
        validation=examples.take(slice(120, 360)),
        budget=Budget(parameters=600),
        morphisms=(Split(),),
        options=replace(OPTIONS, steps=30),
    )
    (grown,) = [e for e in run.history if e["event"] == "grown"]
    assert grown["realised"] < 0
    before, after = averaged
    assert sum(p.numel() for p in before.parameters()) < sum(p.numel() for p in after.parameters())


def striped(count: int) -> Examples:
    """Images of three classes: a bright row, a bright column or a bright diagonal in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 5, 5, generator=generator)
    masks = torch.stack([torch.eye(5)[2].expand(5, 5), torch.eye(5)[2].expand(5, 5).T, torch.eye(5)])
    return Examples(images + 1.5 * masks[labels][:, None], labels)
