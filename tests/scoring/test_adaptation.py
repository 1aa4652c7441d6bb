"""What is left of removals once the weights have adapted, held to ridge regression on dense derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from archir.ir.graph import Graph
from archir.ir.running import run
from archir.scoring import adaptation
from archir.scoring.adaptation import FOLDS, RIDGE, WeightGradients, left_over
from archir.scoring.batches import bind_batches
from archir.scoring.joint import screen_jointly
from archir.scoring.losses import coupled
from archir.scoring.objective import Curvature, Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from archir.scoring.screen import every_part
from archir.scoring.strategies.context import ScoringContext, make_context
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split


class Convolutional(nn.Module):
    """Two convolutions, one normalised, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 5, 3, padding=1, groups=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))
        return logits


class Attending(nn.Module):
    """One head of attention over places, which some calls do not take as a batch of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(5, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x.squeeze(1)).chunk(3, -1)
        logits: Tensor = self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))
        return logits


class Recurrent(nn.Module):
    """A recurrent network over rows, which `torch.vmap` cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(x.squeeze(1))[0][:, -1])
        return logits


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count: int, seed: int = 2) -> Tensor:
    return torch.randint(3, (count,), generator=torch.Generator().manual_seed(seed))


def traced(make: Callable[[], nn.Module]) -> Graph:
    torch.manual_seed(0)
    return trace(make().double().eval(), (images(2),))


def dense(graph: Graph, x: Tensor) -> Tensor:
    """Return the derivatives of all outputs in all trained weights; `[examples, outputs, weights]`."""
    module = graph.module().eval()
    outputs = run(module, (x,))
    weights = [p for p in module.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(o, weights, retain_graph=True) for o in outputs.reshape(-1)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).reshape(*outputs.shape, -1)


def gradients(objective: Objective, x: Tensor, vector: Tensor) -> Tensor:
    (batch,) = bind_batches(objective.program, [(x, labels(len(x)))])
    return WeightGradients(objective, 0)(batch, vector)


def test_what_is_left_is_what_ridge_regression_on_other_units_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    effects = torch.randn(23, 6, generator=generator, dtype=torch.float64)
    derivatives = torch.randn(23, 40, generator=generator, dtype=torch.float64)
    folds = torch.arange(23) % FOLDS
    ridge = RIDGE * derivatives.square().sum()
    expected = torch.empty_like(effects)
    for fold in range(FOLDS):
        w, c = derivatives[folds != fold], effects[folds != fold]
        moved = -torch.linalg.solve(w.mT @ w + ridge * torch.eye(40, dtype=torch.float64), w.mT @ c)
        expected[folds == fold] = effects[folds == fold] + derivatives[folds == fold] @ moved
    assert torch.allclose(left_over(effects, derivatives, folds), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(left_over(effects, torch.zeros_like(derivatives), folds), effects), "nothing can adapt"
    few = derivatives[:, :4]  # fewer weights than rows: the same by way of the weights
    square = few @ few.mT
    ridge, inside = RIDGE * square.trace(), folds == 0
    system = square[~inside][:, ~inside] + ridge * torch.eye(int((~inside).sum()), dtype=torch.float64)
    kept = effects[inside] - square[inside][:, ~inside] @ torch.linalg.solve(system, effects[~inside])
    assert torch.allclose(left_over(effects, few, folds)[inside], kept, rtol=1e-9, atol=1e-12)
    assert torch.equal(left_over(effects, derivatives, torch.zeros(23)), effects), "there is nothing to adapt on"


class Squeezed(nn.Module):
    """A network that loses the axis of the examples where there is one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().mean((2, 3), keepdim=True).squeeze())
        return logits


@pytest.mark.parametrize("make", [Convolutional, Attending, Recurrent, Squeezed])
def test_gradients_are_products_with_the_dense_derivatives(make: Callable[[], nn.Module]) -> None:
    graph, x = traced(make), images(7)
    vector = torch.randn(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = (dense(graph, x) * vector[:, :, None]).sum(1)
    found = gradients(make_objective(graph, "cross_entropy"), x, vector)
    products, twins = found @ found.mT, expected @ expected.mT
    assert torch.allclose(products, twins, rtol=1e-9, atol=1e-12)
    off_diagonal = twins - twins.diag().diag()
    assert off_diagonal.abs().max() > 0.01 * twins.diagonal().max(), "the test would not see rows mixed up"


def test_they_are_made_in_turn_where_memory_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = traced(Convolutional), images(7)
    objective, vector = make_objective(graph, "cross_entropy"), torch.ones(7, 3, dtype=torch.float64)
    whole = gradients(objective, x, vector)
    monkeypatch.setattr(adaptation, "AT_ONCE", 2 * WeightGradients(objective, 0).weights)
    assert torch.allclose(gradients(objective, x, vector), whole, rtol=1e-10, atol=1e-14)


def test_many_weights_are_mixed_so_that_products_stay_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = traced(Convolutional), images(4)
    objective, vector = make_objective(graph, "cross_entropy"), torch.ones(4, 3, dtype=torch.float64)
    (batch,) = bind_batches(objective.program, [(x, labels(4))])
    exact = WeightGradients(objective, 0)(batch, vector)
    monkeypatch.setattr(adaptation, "DIRECTIONS", 64)
    rows = torch.stack([WeightGradients(objective, seed)(batch, vector) for seed in range(200)])
    assert rows.shape == (200, 4, 64) and exact.shape[1] > 200
    products, twin = rows @ rows.mT, exact @ exact.mT
    error = products.std(0) / len(products) ** 0.5
    assert ((products.mean(0) - twin).abs() <= 5 * error + 1e-12).all()
    lengths = exact.norm(dim=1)
    assert (products.std(0) <= 2 * lengths[:, None] * lengths / 64**0.5).all()


def mean_of_all(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss of the whole batch."""
    return (outputs.mean(0) - nn.functional.one_hot(targets, 3).double().mean(0)).square().sum()


def test_the_units_of_a_coupled_loss_are_batches() -> None:
    graph, x = traced(Convolutional), images(6)
    objective = make_objective(graph, coupled(mean_of_all))
    vector = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = gradients(objective, x, vector)
    expected = (dense(graph, x) * vector[:, :, None]).sum((0, 1))
    assert found.shape[0] == 1
    assert torch.allclose(found.square().sum(), expected.square().sum(), rtol=1e-10)


def context(graph: Graph, options: ScoreOptions, examples: int = 30) -> ScoringContext:
    batches = [(images(examples // 2, seed), labels(examples // 2, seed + 9)) for seed in (1, 2)]
    return make_context(make_objective(graph, "cross_entropy"), batches, morphisms=(Split(), Prune()), options=options)


def judged(found: ScoringContext, adapted: Sequence[bool] | None) -> tuple[Tensor, Tensor]:
    joint = screen_jointly(
        found.streamed, found.perturbations, found.thetas, found.batches, curvature=Curvature.EXACT, adapted=adapted
    )
    return torch.cat([e.curvature for e in joint.families]), joint.gram


def test_the_joint_model_is_that_of_what_is_left() -> None:
    graph = traced(Convolutional)
    found = context(graph, ScoreOptions(steps=2))
    removes = [not theta for theta in found.thetas]
    assert any(removes) and not all(removes)
    columns = torch.tensor([r for r, p in zip(removes, found.perturbations, strict=True) for _ in range(p.members)])
    (alone, plain), (left_alone, left) = judged(found, None), judged(found, removes)
    keeps = ~columns
    assert torch.equal(left[keeps][:, keeps], plain[keeps][:, keeps]), "what can learn is judged as before"
    assert torch.equal(left_alone[keeps], alone[keeps])
    assert torch.allclose(left_alone, left.diagonal(), rtol=1e-9)
    assert torch.linalg.eigvalsh(left).min() > -1e-12
    ratios = left.diagonal()[columns] / plain.diagonal()[columns]
    assert ratios.min() < 0.5, "others can take over what some units do"


def test_it_is_found_from_dense_derivatives() -> None:
    graph = traced(Convolutional)
    found = context(graph, ScoreOptions(steps=2))
    removes = [not theta for theta in found.thetas]
    columns = torch.tensor([r for r, p in zip(removes, found.perturbations, strict=True) for _ in range(p.members)])
    given = found.streamed, found.perturbations, found.thetas, found.batches
    effects, derivatives, folds, first = [], [], [], 0
    for screened in every_part(*given, Curvature.EXACT, 0):
        (x,) = screened.part.inputs.values()
        jacobian = dense(graph, x)
        for k, (root, _) in enumerate(screened.vectors):
            effects.append(torch.cat([term.pairs[k][0] for term in screened.terms], 1))
            derivatives.append((jacobian * root[:, :, None]).sum(1))
            folds.append((first + torch.arange(len(x))) % FOLDS)
        first += len(x)
    rows = torch.cat(effects)
    rows[:, columns] = left_over(rows[:, columns], torch.cat(derivatives), torch.cat(folds))
    assert torch.allclose(judged(found, removes)[1], rows.mT @ rows / first, rtol=1e-9, atol=1e-14)


def test_a_curvature_that_has_no_root_stays_what_it_is() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.ReLU(), nn.Linear(6, 80)).double()
    graph = trace(module, (images(2),))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.square().sum(1) + targets).cosh().log()

    found = make_context(
        make_objective(graph, loss), [(images(8), labels(8))], morphisms=(Prune(),), options=ScoreOptions(steps=0)
    )
    given = found.streamed, found.perturbations, found.thetas, found.batches
    plain, adapted = screen_jointly(*given).gram, screen_jointly(*given, adapted=[True]).gram
    assert torch.equal(plain, adapted) and plain.abs().max() > 0


@pytest.mark.parametrize("adapted", [False, True])
def test_nothing_to_remove_and_nothing_to_adapt_are_no_errors(adapted: bool) -> None:
    linear = trace(nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).double(), (images(2),))
    frozen = traced(lambda: Convolutional().requires_grad_(False))
    options = ScoreOptions(steps=0, settled=True, adapted=adapted)
    batch = (images(8), labels(8))
    for graph, some in ((linear, False), (frozen, True)):
        found = score(
            make_objective(graph, "cross_entropy"), [batch], morphisms=(Prune(),), strategy="sampled", options=options
        )
        assert bool(list(found)) is some


def test_a_growth_step_can_ask_for_it() -> None:
    graph = traced(Convolutional)
    plain, left = (
        score(
            make_objective(graph, "cross_entropy"),
            [(images(40), labels(40))],
            morphisms=(Prune(),),
            strategy="sampled",
            options=ScoreOptions(steps=0, settled=True, adapted=given),
        )
        for given in (False, True)
    )
    assert len(list(plain)) > 5
    for one in plain:
        before, after, predicted = one.curvature, left[one.spec].curvature, left[one.spec].predicted
        assert before is not None and after is not None and after < before
        assert predicted == pytest.approx(after / 2)
