"""Every estimator against its dense twin: changes injected on the edges, one Jacobian-vector product of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archir.errors import ScoreError
from archir.ir.node import Use, Value
from archir.rewrite.theta import Theta
from archir.scoring.chunks import singly
from archir.scoring.families import Family, find_families
from archir.scoring.losses import find_loss
from archir.scoring.objective import LARGEST_DENSE, Curvature, make_objective
from archir.scoring.refine import Refinement, refine
from archir.scoring.screen import screen
from archir.scoring.set_models import Joint, Linearised
from archir.testing import evaluate, leaves_of, randomise
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.zoo import FROZEN, ZOO
from tests.scoring.dense import member_of, pushed

MOST = 4
"""Candidates of each family that are looked at."""


class Case:
    """A model of the zoo with a loss, its families and their dense effects."""

    def __init__(self, name: str, loss: str) -> None:
        torch.manual_seed(0)
        example = ZOO[name]
        args, kwargs = example.inputs(3), example.kwargs(3)
        self.graph = randomise(graph_of(name).to(torch.float64))
        tensors = leaves_of(args, kwargs)
        self.values = evaluate(self.graph, tensors)
        self.inputs = tuple(tensors) if not kwargs else tensors[0]
        (value,) = [v for _, v in self.graph.output.operands()]
        self.output: Tensor = self.values[value]
        self.loss = find_loss(loss)
        self.targets = (
            torch.randint(0, self.output.shape[1], (len(self.output),))
            if loss == "cross_entropy"
            else torch.randn_like(self.output)
        )
        self.families: list[Family] = find_families(self.graph, (Split(), Prune(), Widen(count=2)))[0]
        self.perturbations = [f.perturbation for f in self.families]
        self.thetas: list[Theta] = [dict(p.initial_theta(self.values, 1)) for p in self.perturbations]
        self.chosen = [(f, m) for f, p in enumerate(self.perturbations) for m in range(min(p.members, MOST))]
        self.objective = make_objective(self.graph, self.loss)
        self.batches = [(self.inputs, self.targets)]

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `u` `[candidates, examples, outputs]`, `a` `[candidates]` and `G` `[candidates, candidates]`."""
        deltas = [p.delta(self.values, t) for p, t in zip(self.perturbations, self.thetas, strict=True)]
        u = torch.stack(
            [pushed(self.graph, self.values, member_of(self.perturbations[f], deltas[f], m)) for f, m in self.chosen]
        )
        flat = self.output.flatten(1)
        count = len(flat)

        def example(outputs: Tensor, n: int) -> Tensor:
            shaped = torch.cat([flat[:n], outputs[None], flat[n + 1 :]]).reshape(self.output.shape)
            found: Tensor = self.loss.per_example(shaped, self.targets)[n]
            return found

        a, gram = torch.zeros(len(u), dtype=torch.float64), torch.zeros(len(u), len(u), dtype=torch.float64)
        for n in range(count):
            gradient = torch.func.grad(example)(flat[n], n)
            hessian = torch.func.jacrev(torch.func.grad(example))(flat[n], n)
            a += u[:, n] @ gradient / count
            gram += u[:, n] @ hessian @ u[:, n].mT / count
        return u, a, gram


MODELS = sorted(ZOO.keys() - FROZEN - {"two_heads", "gru", "outer_product"})
"""Models that return one tensor and have something to score."""


@pytest.mark.parametrize("name", MODELS)
def test_forward_mode_is_the_dense_jacobian(name: str) -> None:
    case = Case(name, "mse")
    u, a, gram = case.dense()
    found = refine(case.objective, case.perturbations, case.thetas, singly(case.chosen), case.batches)
    scale = u.abs().max().clamp(min=1e-30)
    assert float((found.batches[0].pushed - u).abs().max() / scale) < 1e-9
    assert torch.allclose(found.first_order, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))
    assert torch.allclose(found.gram, gram, rtol=1e-9, atol=1e-9 * float(gram.abs().max()))


@pytest.mark.parametrize(
    ("name", "loss"), [(n, "mse") for n in MODELS] + [("resnet", "cross_entropy"), ("mlp", "cross_entropy")]
)
def test_screening_with_every_class_is_the_diagonal(name: str, loss: str) -> None:
    case = Case(name, loss)
    if case.output[0].numel() > LARGEST_DENSE:
        with pytest.raises(ScoreError, match="exact curvature"):
            screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=Curvature.EXACT)
        return
    _, a, gram = case.dense()
    found = screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=Curvature.EXACT)
    first = torch.stack([found[f].first_order[m] for f, m in case.chosen])
    second = torch.stack([found[f].curvature[m] for f, m in case.chosen])
    assert torch.allclose(first, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))
    assert torch.allclose(second, gram.diagonal(), rtol=1e-9, atol=1e-9 * float(gram.abs().max()))


def refined(case: Case) -> Refinement:
    return refine(case.objective, case.perturbations, case.thetas, singly(case.chosen), case.batches)


def test_joint_and_linearised_predictions_are_their_formulas() -> None:
    case = Case("resnet", "cross_entropy")
    u, a, gram = case.dense()
    found = refined(case)
    chosen = list(range(0, len(u), 3))
    index = torch.tensor(chosen)
    joint = float(a[index].sum() + gram[index][:, index].sum() / 2)
    assert found.joint(chosen) == pytest.approx(joint, rel=1e-9)
    flat = case.output.flatten(1)
    moved = case.loss.mean((flat + u[index].sum(0)).reshape(case.output.shape), case.targets)
    change = float(moved - case.loss.mean(case.output, case.targets))
    assert found.linearised(chosen) == pytest.approx(change, rel=1e-9)
    for model, predict in ((Joint(found), found.joint), (Linearised(found), found.linearised)):
        growing = model.start()
        for i, c in enumerate(chosen):
            growing.add(c, predict(chosen[: i + 1]))
        assert growing.change == pytest.approx(predict(chosen), rel=1e-9)
        few = [c for c in range(len(u)) if c not in chosen]
        expected = torch.tensor([predict([*chosen, c]) for c in few], dtype=torch.float64)
        assert torch.allclose(growing.judge(few), expected, rtol=1e-9)
        assert torch.allclose(growing.estimates[few], expected, rtol=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits"])
def test_sampled_curvature_is_unbiased(loss: str) -> None:
    case = Case("mlp", loss)
    if loss == "bce_with_logits":
        case.targets = torch.rand_like(case.output).round()
        case.batches = [(case.inputs, case.targets)]
    _, _, gram = case.dense()
    draws = torch.stack(
        [
            torch.stack([found[f].curvature[m] for f, m in case.chosen])
            for seed in range(200)
            for found in [screen(case.objective, case.perturbations, case.thetas, case.batches, seed=seed)]
        ]
    )
    error = (draws.mean(0) - gram.diagonal()).abs()
    stderr = draws.std(0) / len(draws) ** 0.5
    assert bool((error <= 4.5 * stderr + 1e-12).all())


def test_edges_are_uses_or_values() -> None:
    case = Case("resnet", "mse")
    kinds = {type(edge) for p in case.perturbations for edge in p.edges}
    assert kinds == {Use, Value}
