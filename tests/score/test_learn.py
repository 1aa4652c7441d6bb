"""Learning steps against automatic differentiation of the estimate written out, and the rules it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archir.errors import ScoreError
from archir.ir.node import Value
from archir.rewrite.morphism import Theta
from archir.rewrite.perturbation import Perturbation
from archir.score.family import find_families
from archir.score.head import Curvature, Head
from archir.score.learn import Learner, Recipe, learn
from archir.score.losses import find_loss
from archir.score.program import Program
from archir.score.reduction import Reduction
from archir.score.screen import backward, screen, tapped_program
from archir.testing import randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models import ZOO

LABELS = torch.tensor([1, 0, 3])


def setting(name: str) -> tuple[Head, list[Perturbation], tuple[tuple[Tensor, ...], Tensor]]:
    example = ZOO[name]
    torch.manual_seed(0)
    args = example.inputs(3)
    graph = randomise(trace(example.build(), args).to(torch.float64))
    families, _ = find_families(graph, (Split(), Prune(), Widen(count=2)))
    doubled = tuple(t.double() if t.is_floating_point() else t for t in args)
    targets = LABELS if name in ("resnet", "mlp") else torch.randn(3, 5, 3, dtype=torch.float64)
    loss = find_loss("cross_entropy" if name in ("resnet", "mlp") else "mse")
    return Head(Program(graph), loss), [f.perturbation for f in families], (doubled, targets)


def slopes(
    head: Head, perturbations: list[Perturbation], thetas: tuple[Theta, ...], batch: tuple[tuple[Tensor, ...], Tensor]
) -> tuple[float, list[dict[int, Tensor]]]:
    """Return the estimate summed over all members of what can be learned, and its gradient in θ."""
    learnable = [i for i, p in enumerate(perturbations) if p.theta]
    program = tapped_program(head.program, [perturbations[i] for i in learnable])
    inputs, targets = batch
    evaluation = program(program.bind(inputs))
    first, pairs = backward(head, evaluation, targets, Curvature.SAMPLED, torch.Generator().manual_seed(7))
    ((left, right),) = list(pairs)
    assert left is right
    total, found = 0.0, []
    for i in learnable:
        p = perturbations[i]
        theta = {n: t.clone().requires_grad_() for n, t in thetas[i].items()}
        deltas = p.delta(evaluation.values, theta)
        linear, root = torch.zeros(()), torch.zeros(())
        for edge, delta in deltas.items():
            reduction = Reduction(p.edges[edge], p.members, delta.shape, len(targets))
            linear = linear + reduction(first[edge], delta)
            root = root + reduction(left[edge], delta)
        estimate = (linear + root**2 / 2).mean(0).sum()
        gradients = torch.autograd.grad(estimate, list(theta.values()), materialize_grads=True)
        total += float(estimate.detach())
        found.append(dict(zip(theta, gradients, strict=True)))
    return total, found


@pytest.mark.parametrize("name", ["resnet", "mlp", "rotary_embedding"])
def test_a_step_follows_the_gradient_of_the_estimate(name: str) -> None:
    head, perturbations, batch = setting(name)
    learner = Learner(head, perturbations, Recipe(steps=1000, rate=1e-6, radius=1e6, seed=7))
    before = learner.thetas
    expected, gradients = slopes(head, perturbations, before, batch)
    assert learner.step(batch) == pytest.approx(expected, rel=1e-9)
    moved = [(b, a) for b, a in zip(before, learner.thetas, strict=True) if b]
    assert len(moved) == len(gradients) > 0
    for (old, new), gradient in zip(moved, gradients, strict=True):
        for node in old:
            clear = gradient[node].abs() > 1e-9 * gradient[node].abs().max()
            # The first step of Adam is the sign of the gradient.
            assert torch.equal((old[node] - new[node])[clear].sign(), gradient[node][clear].sign())


def test_a_step_returns_what_screening_sums_up_to() -> None:
    head, perturbations, batch = setting("resnet")
    only = [p for p in perturbations if p.theta]
    learner = Learner(head, only, Recipe(seed=3))
    found = screen(head, only, learner.thetas, [batch], seed=3)
    assert learner.step(batch) == pytest.approx(sum(float(e.predicted.sum()) for e in found), rel=1e-9)


def test_rows_stay_in_the_trust_region() -> None:
    head, perturbations, batch = setting("resnet")
    learned = learn(head, perturbations, [batch], Recipe(steps=5, rate=1.0, radius=0.25))
    splits = [i for i, p in enumerate(perturbations) if p.theta and p.members > 1]
    assert splits
    for i in splits:
        for node, theta in learned.thetas[i].items():
            weight = head.program.graph.tensors[node]
            length, limit = theta.flatten(1).norm(dim=1), 0.25 * weight.flatten(1).norm(dim=1)
            assert bool((length <= limit * (1 + 1e-9)).all())
            assert bool((length >= limit * (1 - 1e-9)).any())


def test_weights_stay_frozen_and_seeds_decide() -> None:
    head, perturbations, batch = setting("mlp")
    stored = {Value(n): t.clone() for n, t in head.program.graph.tensors.items()}
    one, same, other = (learn(head, perturbations, [batch], Recipe(steps=3, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(t, head.program.graph.tensors[v.node]) for v, t in stored.items())
    assert torch.equal(one.estimates, same.estimates) and not torch.equal(one.estimates, other.estimates)
    for a, b in zip(one.thetas, same.thetas, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_batches_are_used_again_and_must_be_there() -> None:
    head, perturbations, batch = setting("mlp")
    assert len(learn(head, perturbations, [batch], Recipe(steps=4)).estimates) == 4
    with pytest.raises(ScoreError, match="no batches"):
        learn(head, perturbations, [], Recipe(steps=1))
