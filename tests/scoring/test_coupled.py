"""Coupled losses: estimators against Jacobians and Hessians of whole batches, and growth by a contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir import coupled
from archir.errors import ScoreError
from archir.growing.config import loss_of
from archir.growing.examples import Examples
from archir.growing.growth import grow_once
from archir.growing.options import GrowOptions
from archir.growing.training import evaluate as measure
from archir.ir.graph import Graph
from archir.scoring import objective as objectives
from archir.scoring.batches import Batch
from archir.scoring.budget import Budget
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.learn import Learner
from archir.scoring.losses import Loss, check_loss, find_loss
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from archir.testing import evaluate, randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.scoring.dense import member_of, pushed


@coupled
def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the examples of a batch instead of over classes: convex in the outputs."""
    return -(targets.softmax(0) * outputs.log_softmax(0)).sum()


@coupled
def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    """InfoNCE: every example is to be told from the others of the batch by its own target."""
    similarities = F.normalize(outputs, dim=1) @ F.normalize(targets, dim=1).mT
    return F.cross_entropy(similarities / 0.5, torch.arange(len(outputs)))


class Embedding(nn.Module):
    """A small net with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        found: Tensor = self.last(torch.tanh(x + self.inner(x)))
        return found


class Case:
    """A net with batches of different sizes, its families and their dense effects."""

    def __init__(self, loss: Loss, sizes: Sequence[int] = (4, 6)) -> None:
        torch.manual_seed(0)
        self.graph: Graph = randomise(trace(Embedding(), (torch.randn(3, 4),)).to(torch.float64))
        self.loss = loss
        self.batches: list[Batch] = [
            (torch.randn(n, 4, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)) for n in sizes
        ]
        families, _ = find_families(self.graph, (Split(), Prune(), Widen(count=2)))
        self.perturbations = [f.perturbation for f in families]
        stored = evaluate(self.graph, [self.batches[0][0]])
        self.thetas = [dict(p.initial_theta(stored, 1)) for p in self.perturbations]
        self.chosen = [(f, m) for f, p in enumerate(self.perturbations) for m in range(p.members)]
        self.objective = make_objective(self.graph, loss)

    def dense(self, *, convex: bool = False) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Return `a` `[batches, candidates]`, `G` `[batches, candidates, candidates]`, every `u`, and the sizes.

        Args:
            convex: leave negative eigenvalues of the Hessians out.
        """
        a, gram, us, sizes = [], [], [], []
        for inputs, targets in self.batches:
            values = evaluate(self.graph, [inputs])
            (result,) = [v for _, v in self.graph.output.operands()]
            output: Tensor = values[result]
            assert isinstance(targets, Tensor)
            deltas = [p.delta(values, t) for p, t in zip(self.perturbations, self.thetas, strict=True)]
            u = torch.stack(
                [pushed(self.graph, values, member_of(self.perturbations[f], deltas[f], m)) for f, m in self.chosen]
            )

            def whole(flat: Tensor, targets: Tensor = targets, shape: torch.Size = output.shape) -> Tensor:
                return self.loss(flat.reshape(shape), targets)

            flat = output.flatten()
            hessian = torch.func.jacrev(torch.func.grad(whole))(flat)
            if convex:
                eigenvalues, vectors = torch.linalg.eigh(hessian)
                hessian = vectors * eigenvalues.clamp(min=0) @ vectors.mT
            (gradient,) = torch.autograd.grad(whole(leaf := flat.clone().requires_grad_()), leaf)
            rows = u.flatten(1)
            a.append(rows @ gradient)
            gram.append(rows @ hessian @ rows.mT)
            us.append(u)
            sizes.append(len(targets))
        return torch.stack(a), torch.stack(gram), us, torch.tensor(sizes, dtype=torch.float64)

    def screened(self, curvature: Curvature, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return first order, curvature and standard error of every candidate, by screening."""
        found = screen(self.objective, self.perturbations, self.thetas, self.batches, curvature=curvature, seed=seed)
        return (
            torch.cat([e.first_order for e in found]),
            torch.cat([e.curvature for e in found]),
            torch.cat([e.stderr for e in found]),
        )


def averaged(per_batch: Tensor, sizes: Tensor) -> Tensor:
    """Return the mean over batches, each weighted by its number of examples."""
    found: Tensor = torch.tensordot(sizes / sizes.sum(), per_batch, dims=1)
    return found


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("loss", [ranking, contrastive])
def test_forward_mode_is_the_dense_hessian_of_the_batch(loss: Loss) -> None:
    case = Case(loss)
    a, gram, us, sizes = case.dense()
    found = refine(case.objective, case.perturbations, case.thetas, singly(case.chosen), case.batches)
    assert close(found.first_order, averaged(a, sizes))
    assert close(found.gram, averaged(gram, sizes))
    changes = []
    for (inputs, targets), u in zip(case.batches, us, strict=True):
        output = case.objective.program(case.objective.program.bind(inputs)).outputs[0]
        changes.append(loss(output + u[[0, 3, 7]].sum(0).reshape(output.shape), targets) - loss(output, targets))
    assert found.linearised([0, 3, 7]) == pytest.approx(float(averaged(torch.stack(changes), sizes)), rel=1e-9)


@pytest.mark.parametrize("loss", [ranking, contrastive])
def test_screening_squares_what_was_summed_over_the_batch(loss: Loss) -> None:
    case = Case(loss)
    a, gram, _, sizes = case.dense(convex=True)
    first, second, _ = case.screened(Curvature.EXACT)
    assert close(first, averaged(a, sizes))
    assert close(second, averaged(gram.diagonal(dim1=1, dim2=2), sizes))


@pytest.mark.parametrize("dense", [True, False])
def test_sampled_curvature_is_unbiased(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "LARGEST_DENSE", 64 if dense else 0)
    case = Case(contrastive)
    _, gram, _, sizes = case.dense(convex=dense)
    draws = torch.stack([case.screened(Curvature.SAMPLED, seed)[1] for seed in range(200)])
    error = (draws.mean(0) - averaged(gram.diagonal(dim1=1, dim2=2), sizes)).abs()
    assert bool((error <= 4.5 * draws.std(0) / len(draws) ** 0.5 + 1e-12).all())


def test_the_exact_curvature_of_a_large_batch_is_refused() -> None:
    case = Case(ranking, (30,))
    with pytest.raises(ScoreError, match="exact curvature of 90 outputs a batch"):
        case.screened(Curvature.EXACT)


def test_standard_errors_are_over_batches() -> None:
    case = Case(ranking, (4, 6, 4, 5))
    a, gram, _, sizes = case.dense()
    change = a + gram.diagonal(dim1=1, dim2=2) / 2
    weights = (sizes / sizes.sum())[:, None]
    expected = (4 / 3 * (weights * (change - averaged(change, sizes))).square().sum(0)).sqrt()
    assert close(case.screened(Curvature.EXACT)[2], expected)
    assert close(
        refine(case.objective, case.perturbations, case.thetas, singly(case.chosen), case.batches).stderr, expected
    )


def test_one_batch_has_no_standard_error() -> None:
    case = Case(ranking, (4,))
    assert bool(case.screened(Curvature.EXACT)[2].isnan().all())


def test_learning_follows_the_estimate_of_whole_batches() -> None:
    case = Case(ranking, (5,))
    learner = Learner(
        case.objective, case.perturbations, ScoreOptions(steps=1000, rate=1e-6, radius=1e6, curvature=Curvature.EXACT)
    )
    case.thetas = [dict(t) for t in learner.thetas]
    learned = [i for i, p in enumerate(case.perturbations) if p.theta]

    def estimate() -> float:
        found = screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=Curvature.EXACT)
        return sum(float(found[i].predicted.sum()) for i in learned)

    before = [dict(t) for t in learner.thetas]
    assert learner.step(case.batches[0]) == pytest.approx(estimate(), rel=1e-9)
    for i in learned:
        for node, old in before[i].items():
            moved = learner.thetas[i][node] - old
            number = int(moved.abs().flatten().argmax())
            slopes = []
            for step in (1e-5, -1e-5):
                shifted = old.clone()
                shifted.view(-1)[number] += step
                case.thetas[i] = {**before[i], node: shifted}
                slopes.append(estimate())
            case.thetas[i] = before[i]
            # The first step of Adam is the sign of the gradient.
            assert math.copysign(1, slopes[0] - slopes[1]) == -float(moved.flatten()[number].sign())


def test_a_mean_declared_as_coupled_scores_the_same() -> None:
    mean, whole = Case(find_loss("mse")), Case(coupled(F.mse_loss))
    expected, found = (
        refine(c.objective, c.perturbations, c.thetas, singly(c.chosen), c.batches) for c in (mean, whole)
    )
    assert close(found.gram, expected.gram) and close(found.first_order, expected.first_order)
    assert not close(found.stderr, expected.stderr)


def test_a_scalar_that_is_no_mean_is_told_how_to_be_declared() -> None:
    outputs, targets = torch.randn(5, 3), torch.randn(5, 3)
    with pytest.raises(ScoreError, match=r"declare a loss of the whole batch by archir\.coupled"):
        check_loss(find_loss(contrastive.mean), outputs, targets)
    check_loss(contrastive, outputs, targets)
    assert contrastive.name == "contrastive" and find_loss(contrastive) is contrastive
    with pytest.raises(ScoreError, match="couples the examples"):
        contrastive.per_example(outputs, targets)


def test_coupled_losses_are_one_finite_number() -> None:
    with pytest.raises(ScoreError, match=r"the coupled loss .* returns \[5\]"):
        check_loss(coupled(lambda outputs, targets: outputs[:, 0]), torch.randn(5, 3), torch.zeros(5))
    with pytest.raises(ScoreError, match="is nan on a batch"):
        check_loss(ranking, torch.full((5, 3), torch.nan), torch.zeros(5, 3))


def test_a_net_grows_by_a_contrastive_loss(tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(
        "import torch\n"
        "import archir\n\n\n"
        "@archir.coupled\n"
        "def contrastive(outputs, targets):\n"
        "    scores = outputs @ targets.mT\n"
        "    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))\n"
    )
    loss = loss_of("losses.py:contrastive", tmp_path)
    torch.manual_seed(0)
    inputs = torch.randn(180, 4)
    examples = Examples(inputs, torch.sin(3 * inputs[:, :3]))
    parts = [examples.take(slice(i, i + 60)) for i in (0, 60, 120)]
    graph = trace(Embedding(), (inputs[:2],))
    options = GrowOptions(batch_size=20, learn_steps=40)
    growth = grow_once(
        graph,
        train=parts[0],
        selection=parts[1],
        check=parts[2],
        loss=loss,
        budget=Budget(parameters=200),
        options=options,
        morphisms=(Split(), Widen(count=2)),
        seed=0,
    )
    assert growth.specs
    before, after = (measure(g.module(), parts[2], loss, batch_size=20) for g in (graph, growth.graph))
    assert after.accuracy is None
    assert growth.realised == pytest.approx(after.loss - before.loss, rel=1e-6)
    assert growth.realised < 0 and growth.expected == pytest.approx(growth.realised, rel=0.5)
