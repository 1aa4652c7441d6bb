"""Learning steps against automatic differentiation of the estimate written out, and the rules it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archir.errors import ScoreError
from archir.ir.node import Value
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.theta import Key, Theta, by_node
from archir.scoring.families import find_families
from archir.scoring.learn import Learner, learn
from archir.scoring.losses import find_loss
from archir.scoring.objective import Curvature, Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.reduction import Reduction
from archir.scoring.screen import screen
from archir.scoring.tapped import backward, tapped_program
from archir.testing import randomise
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.zoo import ZOO

LABELS = torch.tensor([1, 0, 3])


def setting(name: str) -> tuple[Objective, list[Perturbation], tuple[tuple[Tensor, ...], Tensor]]:
    example = ZOO[name]
    torch.manual_seed(0)
    args = example.inputs(3)
    graph = randomise(graph_of(name).to(torch.float64))
    families, _ = find_families(graph, (Split(), Prune(), Widen(count=2)))
    doubled = tuple(t.double() if t.is_floating_point() else t for t in args)
    targets = LABELS if name in ("resnet", "mlp") else torch.randn(3, 5, 3, dtype=torch.float64)
    loss = find_loss("cross_entropy" if name in ("resnet", "mlp") else "mse")
    return make_objective(graph, loss), [f.perturbation for f in families], (doubled, targets)


def slopes(
    objective: Objective,
    perturbations: list[Perturbation],
    thetas: tuple[Theta, ...],
    batch: tuple[tuple[Tensor, ...], Tensor],
    together: list[tuple[int, int]] | None = None,
) -> tuple[float, list[dict[Key, Tensor]]]:
    """Return the estimate summed over all members of what can be learned, or that of a set, and its gradient in θ."""
    used = [i for i, p in enumerate(perturbations) if p.theta] if together is None else sorted({f for f, _ in together})
    program = tapped_program(objective.program, [perturbations[i] for i in used])
    inputs, targets = batch
    evaluation = program(program.program.bind(inputs))
    generator = torch.Generator().manual_seed(7)
    vectors = list(objective.pairs(evaluation.outputs, targets, Curvature.SAMPLED, generator))
    first, pairs = backward(objective, evaluation, targets, vectors)
    ((left, right),) = list(pairs)
    assert left is right
    kept: dict[int, dict[Key, Tensor]] = {}
    terms: list[tuple[Tensor, Tensor]] = []
    for i in used:
        p = perturbations[i]
        theta = {n: t.clone().requires_grad_() for n, t in thetas[i].items()}
        deltas = p.delta(evaluation.values, theta)
        linear, root = torch.zeros(()), torch.zeros(())
        for edge, delta in deltas.items():
            reduction = Reduction(p.edges[edge], p.members, delta.shape, len(targets))
            linear = linear + reduction(first[edge], delta)
            root = root + reduction(left[edge], delta)
        if together is not None:
            members = [m for f, m in together if f == i]
            linear, root = linear[:, members].sum(1, keepdim=True), root[:, members].sum(1, keepdim=True)
        kept[i] = theta
        terms.append((linear, root))
    if together is not None:
        linears, roots = zip(*terms, strict=True)
        terms = [(torch.stack(linears).sum(0), torch.stack(roots).sum(0))]
    estimate = torch.stack([(linear + root**2 / 2).mean(0).sum() for linear, root in terms]).sum()
    learned = [theta for theta in kept.values() if theta]
    flat = torch.autograd.grad(estimate, [t for theta in learned for t in theta.values()], materialize_grads=True)
    rest = iter(flat)
    return float(estimate.detach()), [{n: next(rest) for n in theta} for theta in learned]


@pytest.mark.parametrize("name", ["resnet", "mlp", "rotary_embedding"])
def test_a_step_follows_the_gradient_of_the_estimate(name: str) -> None:
    objective, perturbations, batch = setting(name)
    learner = Learner(objective, perturbations, ScoreOptions(steps=1000, rate=1e-6, radius=1e6, seed=7))
    before = learner.thetas
    expected, gradients = slopes(objective, perturbations, before, batch)
    assert learner.step(batch) == pytest.approx(expected, rel=1e-9)
    moved = [(b, a) for b, a in zip(before, learner.thetas, strict=True) if b]
    assert len(moved) == len(gradients) > 0
    for (old, new), gradient in zip(moved, gradients, strict=True):
        for node in old:
            clear = gradient[node].abs() > 1e-9 * gradient[node].abs().max()
            # The first step of Adam is the sign of the gradient.
            assert torch.equal((old[node] - new[node])[clear].sign(), gradient[node][clear].sign())


def a_set(perturbations: list[Perturbation]) -> list[tuple[int, int]]:
    """Return members of several families: two units of one, one of others, and one that has nothing to learn."""
    several, *_ = [i for i, p in enumerate(perturbations) if p.theta and p.members > 1]
    other, *_ = [i for i, p in enumerate(perturbations) if p.theta and i != several]
    fixed, *_ = [i for i, p in enumerate(perturbations) if not p.theta and p.members > 1]
    return [(several, 2), (several, 1), (other, 0), (fixed, 1)]


@pytest.mark.parametrize("name", ["resnet", "mlp", "rotary_embedding"])
def test_a_step_for_a_set_follows_the_gradient_of_its_one_estimate(name: str) -> None:
    objective, perturbations, batch = setting(name)
    together = a_set(perturbations)
    start = Learner(objective, perturbations, ScoreOptions(seed=7)).thetas
    options = ScoreOptions(steps=1000, rate=1e-6, radius=1e6, seed=7)
    learner = Learner(objective, perturbations, options, start=start, together=together)
    expected, gradients = slopes(objective, perturbations, start, batch, together)
    assert learner.step(batch) == pytest.approx(expected, rel=1e-9)
    learned = sorted({f for f, _ in together if start[f]})
    assert len(learned) == len(gradients) == 2
    for i, (old, new) in enumerate(zip(start, learner.thetas, strict=True)):
        gradient = gradients[learned.index(i)] if i in learned else {n: torch.zeros_like(t) for n, t in old.items()}
        for node in old:
            clear = gradient[node].abs() > 1e-9 * gradient[node].abs().max()
            assert torch.equal((old[node] - new[node])[clear].sign(), gradient[node][clear].sign())
            assert torch.equal(old[node][gradient[node] == 0], new[node][gradient[node] == 0])


def test_a_set_of_one_learns_as_if_it_were_alone() -> None:
    objective, perturbations, batch = setting("mlp")
    (only,) = [p for p in perturbations if p.theta and p.members == 1][:1]
    alone, together = (learn(objective, [only], [batch], ScoreOptions(steps=4), together=t) for t in (None, [(0, 0)]))
    assert torch.allclose(alone.estimates, together.estimates, rtol=1e-12, atol=0)
    for node, theta in alone.thetas[0].items():
        assert torch.allclose(theta, together.thetas[0][node], rtol=1e-9, atol=0)


@pytest.mark.parametrize("together", [False, True])
def test_learning_from_a_multiple_is_learning_from_what_it_makes(together: bool) -> None:
    objective, perturbations, batch = setting("resnet")
    start = Learner(objective, perturbations, ScoreOptions(seed=7)).thetas
    halves = [{key: t / 2 for key, t in theta.items()} for theta in start]
    chosen = a_set(perturbations) if together else None
    options = ScoreOptions(steps=2, curvature=Curvature.EXACT)
    found, expected, whole = (
        learn(objective, perturbations, [batch], options, start=begun, scale=scale, together=chosen)
        for begun, scale in ((start, 0.5), (halves, 1.0), (start, 1.0))
    )
    assert torch.equal(found.estimates, expected.estimates) and not torch.allclose(found.estimates, whole.estimates)
    for one, other in zip(found.thetas, expected.thetas, strict=True):
        assert all(torch.equal(other[node], one[node]) for node in one)


def test_a_step_returns_what_screening_sums_up_to() -> None:
    objective, perturbations, batch = setting("resnet")
    only = [p for p in perturbations if p.theta]
    learner = Learner(objective, only, ScoreOptions(seed=3))
    found = screen(objective, only, learner.thetas, [batch], seed=3)
    assert learner.step(batch) == pytest.approx(sum(float(e.predicted.sum()) for e in found), rel=1e-9)


def test_rows_stay_in_the_trust_region() -> None:
    objective, perturbations, batch = setting("resnet")
    learned = learn(objective, perturbations, [batch], ScoreOptions(steps=5, rate=1.0, radius=0.25))
    splits = [i for i, p in enumerate(perturbations) if p.theta and p.members > 1]
    assert splits
    for i in splits:
        for node, theta in by_node(learned.thetas[i]).items():
            weight = objective.program.graph.tensors[node]
            length, limit = theta.flatten(1).norm(dim=1), 0.25 * weight.flatten(1).norm(dim=1)
            assert bool((length <= limit * (1 + 1e-9)).all())
            assert bool((length >= limit * (1 - 1e-9)).any())


def test_weights_stay_frozen_and_seeds_decide() -> None:
    objective, perturbations, batch = setting("mlp")
    stored = {Value(n): t.clone() for n, t in objective.program.graph.tensors.items()}
    one, same, other = (learn(objective, perturbations, [batch], ScoreOptions(steps=3, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(t, objective.program.graph.tensors[v.node]) for v, t in stored.items())
    assert torch.equal(one.estimates, same.estimates) and not torch.equal(one.estimates, other.estimates)
    for a, b in zip(one.thetas, same.thetas, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_batches_are_used_again_and_must_be_there() -> None:
    objective, perturbations, batch = setting("mlp")
    assert len(learn(objective, perturbations, [batch], ScoreOptions(steps=4)).estimates) == 4
    with pytest.raises(ScoreError, match="no batches"):
        learn(objective, perturbations, [], ScoreOptions(steps=1))
