"""The splitting index against Hessians written out, and against the true loss of small splits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from archir.ir.graph import Graph
from archir.scoring.options import ScoreOptions
from archir.scoring.strategies.splitting import SplittingIndex, smallest_eigenpairs
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from tests.models.zoo import ZOO
from tests.scoring.strategies.nets import Batch, images, make_scores, mean_loss, perceptron, weight


def splitting_matrix(graph_act: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor], unit: int) -> Tensor:
    """Return the Hessian of `mean_n g h(w)` in the weights of one unit, `h` with an activation of its own."""
    graph, batches = perceptron(graph_act)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    w, b, v, c = (weight(graph, n) for n in ("inner.weight", "inner.bias", "outer.weight", "outer.bias"))
    hidden = graph_act(x @ w.mT + b).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(hidden @ v.mT + c, y), hidden)

    def first_order(row: Tensor) -> Tensor:
        return (gradient[:, unit] * act(x @ row + b[unit])).sum()

    found: Tensor = torch.func.jacrev(torch.func.grad(first_order))(w[unit])
    return found


@pytest.mark.parametrize(
    ("graph_act", "act"),
    [
        (torch.tanh, torch.tanh),
        (torch.nn.functional.gelu, torch.nn.functional.gelu),
        (torch.relu, partial(softplus, beta=5.0)),
    ],
)
def test_the_index_is_the_smallest_eigenvalue_of_the_dense_matrix(
    graph_act: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor]
) -> None:
    graph, batches = perceptron(graph_act)
    scores = make_scores(SplittingIndex(), graph, batches, Split(), options=ScoreOptions(radius=0.25))
    rows = weight(graph, "inner.weight")
    assert len(scores) >= 2
    for unit in range(4):
        dense = splitting_matrix(graph_act, act, unit)
        values, vectors = torch.linalg.eigh(dense)
        found = next((r for r in scores if r.spec.endswith(f"units=[{unit}]}}")), None)
        if found is None:
            assert float(values[0]) >= 0
            continue
        assert found.order == pytest.approx(float(values[0]), rel=1e-9, abs=1e-12)
        assert found.theta is not None
        (theta,) = found.theta.values()
        length = 0.01 * rows[unit].norm()
        assert float(theta[unit].norm()) == pytest.approx(float(length), rel=1e-9)
        assert float((theta[unit] @ vectors[:, 0]).abs()) == pytest.approx(float(length), rel=1e-9)


@pytest.mark.parametrize("data", [perceptron, images])
def test_a_small_split_changes_the_loss_by_half_the_index(data: Callable[[], tuple[Graph, list[Batch]]]) -> None:
    graph, batches = data()
    scores = make_scores(SplittingIndex(), graph, batches, Split(), options=ScoreOptions(radius=1e-3))
    before = float(mean_loss(graph, batches).detach())
    clear = [r for r in scores if abs(r.order) > 1e-3]
    assert len(clear) >= 3
    for split in clear:
        assert split.theta is not None
        unit = int(split.spec.partition("[")[2].partition("]")[0])
        (theta,) = split.theta.values()
        change = float(mean_loss(scores.together([split]).apply(), batches).detach()) - before
        assert change == pytest.approx(0.5 * split.order * float(theta[unit].square().sum()), rel=1e-3)


def test_only_splits_are_ranked_and_linear_units_have_nothing_to_gain() -> None:
    graph, batches = perceptron(torch.nn.Identity())
    scores = make_scores(SplittingIndex(), graph, batches, Split(), Prune())
    assert len(scores) == 0 and scores.choose() == []
    assert [(label, m.reason) for label, m in scores.misses] == [("prune w0", "the strategy scores split only")]


@pytest.mark.parametrize("length", [0.5, 1e-3])
def test_the_trust_region_bounds_the_step(length: float) -> None:
    graph, batches = perceptron(torch.tanh)
    scores = make_scores(SplittingIndex(length=0.5), graph, batches, Split(), options=ScoreOptions(radius=length))
    rows = weight(graph, "inner.weight")
    found = next(iter(scores)).theta
    assert found is not None
    (theta,) = found.values()
    assert torch.allclose(theta.norm(dim=1), length * rows.norm(dim=1), rtol=1e-9)


def test_units_behind_attention_are_ranked() -> None:
    """The kernels of attention on a CPU have no second derivative; the one that is plain arithmetic has."""
    torch.manual_seed(0)
    example = ZOO["gpt"]
    tokens = example.inputs()[0]
    graph = trace(example.build(), (tokens,)).to(torch.float64)
    targets = torch.randint(0, 5, tuple(tokens.shape))
    scores = make_scores("splitting-index", graph, [(tokens, targets)], Split())
    assert len(scores) >= 10 and all(r.order < 0 for r in scores)


def test_lanczos_steps_are_exact_when_there_are_enough_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 12, 12, generator=generator, dtype=torch.float64)
    dense = dense + dense.mT
    low = dense[:, :, :2]
    degenerate = torch.eye(12, dtype=torch.float64).expand(5, 12, 12)
    start = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    for matrices in (dense, low @ low.mT, degenerate, 0 * dense, -low @ low.mT + degenerate):
        values, vectors = smallest_eigenpairs(lambda v, m=matrices: torch.einsum("uij,uj->ui", m, v), start, 12)  # type: ignore[misc]
        assert torch.allclose(values, torch.linalg.eigvalsh(matrices)[:, 0], atol=1e-9)
        assert torch.allclose(torch.einsum("uij,uj->ui", matrices, vectors), values[:, None] * vectors, atol=1e-7)


def test_a_few_lanczos_steps_come_close() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(3, 80, 80, generator=generator, dtype=torch.float64)
    dense = dense + dense.mT
    start = torch.randn(3, 80, generator=generator, dtype=torch.float64)
    values, _ = smallest_eigenpairs(lambda v: torch.einsum("uij,uj->ui", dense, v), start, 32)
    assert torch.allclose(values, torch.linalg.eigvalsh(dense)[:, 0], rtol=1e-2)
