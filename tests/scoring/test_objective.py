"""The loss on the outputs: gradients, Hessian products, and vectors whose outer products average to the Hessian."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archir.errors import ScoreError
from archir.ir.builder import GraphBuilder as Builder
from archir.scoring.losses import Loss, coupled
from archir.scoring.objective import LARGEST_DENSE, Curvature, Objective, make_objective

EXAMPLES = 3


def objective_of(loss: str | Callable[..., Tensor] | Loss, outputs: int = 1) -> Objective:
    builder = Builder()
    found = [builder.input(f"x{i}", "f64[B, 4]") for i in range(outputs)]
    called = [builder.call("aten.relu.default", x) for x in found]
    return make_objective(builder.graph(*called), loss)


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(outputs, targets, reduction="none").flatten(1).sum(1)


def softened(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def hessians(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the Hessian of every example's loss, `[examples, outputs, outputs]`."""

    def total(flat: Tensor) -> Tensor:
        return loss.per_example(flat.reshape(outputs.shape), targets).sum()

    flat = outputs.flatten(1)
    whole: Tensor = torch.func.jacrev(torch.func.grad(total))(flat)
    return torch.stack([whole[n, :, n] for n in range(len(flat))])


LABELS = torch.tensor([1, 0, 3])
CASES: list[tuple[str | Callable[..., Tensor], tuple[int, ...], Tensor]] = [
    ("cross_entropy", (3, 4), LABELS),
    ("cross_entropy", (3, 4, 2), torch.stack([LABELS, LABELS.flip(0)], 1)),
    ("cross_entropy", (3, 2, 4), torch.stack([LABELS, LABELS.flip(0)], 1)),
    ("cross_entropy", (3, 2, 4), torch.tensor([[1, 0], [-100, 3], [-100, -100]])),
    ("cross_entropy", (3, 4), torch.rand(3, 4, dtype=torch.float64)),
    ("mse", (3, 4), torch.randn(3, 4, dtype=torch.float64)),
    ("bce_with_logits", (3, 4), torch.rand(3, 4, dtype=torch.float64)),
    (softened, (3, 4), LABELS),
    (huber, (3, 4), torch.randn(3, 4, dtype=torch.float64)),
]


@pytest.mark.parametrize(("loss", "shape", "targets"), CASES)
def test_vectors_average_to_the_hessian(loss: str, shape: tuple[int, ...], targets: Tensor) -> None:
    outputs = torch.randn(*shape, dtype=torch.float64)
    objective = objective_of(loss)
    expected = hessians(objective.loss, outputs, targets)
    generator = torch.Generator().manual_seed(0)
    exact = torch.zeros_like(expected)
    for left, right in objective.pairs([outputs], targets, Curvature.EXACT, generator):
        exact += left[:, :, None] * right[:, None, :]
    assert torch.allclose(exact, expected, rtol=1e-9, atol=1e-12)
    draws = torch.stack(
        [
            left[:, :, None] * right[:, None, :]
            for _ in range(2000)
            for left, right in objective.pairs([outputs], targets, Curvature.SAMPLED, generator)
        ]
    )
    stderr = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() <= 5 * stderr + 1e-9).all())


def test_the_curvature_of_one_output_is_exact_with_one_sample() -> None:
    objective = objective_of("bce_with_logits")
    outputs, targets = torch.randn(3, 1, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    ((left, right),) = objective.pairs([outputs], targets, Curvature.SAMPLED, torch.Generator())
    expected = hessians(objective.loss, outputs, targets)
    assert torch.allclose(left[:, :, None] * right[:, None, :], expected, rtol=1e-12)


def test_any_loss_with_many_outputs_is_sampled_in_pairs() -> None:
    objective = objective_of(huber)
    count = LARGEST_DENSE + 2
    outputs, targets = torch.randn(3, count, dtype=torch.float64), torch.randn(3, count, dtype=torch.float64)
    expected = hessians(objective.loss, outputs, targets)
    generator = torch.Generator().manual_seed(0)
    ((left, right),) = objective.pairs([outputs], targets, Curvature.SAMPLED, generator)
    assert torch.allclose(right, (expected @ left[:, :, None])[:, :, 0], rtol=1e-9, atol=1e-12)
    with pytest.raises(ScoreError, match="exact curvature of 66 outputs"):
        list(objective.pairs([outputs], targets, Curvature.EXACT, generator))


def test_gradients_and_hessian_products_are_those_of_single_examples() -> None:
    objective = objective_of("cross_entropy")
    outputs = torch.randn(3, 4, dtype=torch.float64)
    _, gradient = objective.gradient([outputs], LABELS)
    assert torch.allclose(gradient, outputs.softmax(1) - F.one_hot(LABELS, 4), rtol=1e-12)
    u = torch.randn(5, 3, 4, dtype=torch.float64)
    expected = torch.einsum("nij,cnj->cni", hessians(objective.loss, outputs, LABELS), u)
    assert torch.allclose(objective.hessian_product([outputs], LABELS, u), expected, rtol=1e-9, atol=1e-12)


def test_a_linear_loss_has_no_curvature() -> None:
    objective = objective_of(lambda outputs, targets: outputs.sum(1))
    outputs = torch.randn(3, 4, dtype=torch.float64)
    assert not objective.hessian_product([outputs], LABELS, torch.randn(2, 3, 4, dtype=torch.float64)).any()


def test_several_outputs_lie_side_by_side() -> None:
    objective = objective_of("mse", outputs=2)
    outputs = [torch.randn(3, 4, dtype=torch.float64), torch.arange(3), torch.randn(3, 2, 2, dtype=torch.float64)]
    flat = objective.flatten(outputs, 3)
    assert flat.shape == (3, 8)
    assert all(torch.equal(a, b) for a, b in zip(objective.split(flat, outputs), outputs, strict=True))
    with pytest.raises(ScoreError, match="does not fit 4 examples"):
        objective.flatten(outputs, 4)
    with pytest.raises(ScoreError, match="no real tensor"):
        objective.flatten([torch.arange(3)], 3)


def test_a_loss_that_ignores_the_outputs_is_refused() -> None:
    objective = objective_of(lambda outputs, targets: targets.double())
    with pytest.raises(ScoreError, match="does not depend on the outputs"):
        objective.gradient([torch.randn(3, 4, dtype=torch.float64)], LABELS)


def odd(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that looks at numbers, so that several sets of outputs cannot go through it at once."""
    return (outputs.abs() if float(outputs.detach().sum()) > 0 else outputs.square()).sum(1)


def pulled(outputs: Tensor, targets: Tensor) -> Tensor:
    """A mean over examples, not one loss for each."""
    return (outputs - targets[:, None]).square().mean()


CALLS: list[torch.Size] = []


def counted(outputs: Tensor, targets: Tensor) -> Tensor:
    CALLS.append(outputs.shape)
    return outputs.square().mean()


MORE: list[tuple[str | Callable[..., Tensor] | Loss, tuple[int, ...], Tensor]] = [
    (odd, (3, 4), LABELS),
    (pulled, (3, 4), LABELS),
    (coupled(pulled), (3, 4), LABELS),
]


@pytest.mark.parametrize(("loss", "shape", "targets"), [*CASES, *MORE])
def test_the_losses_of_several_outputs_are_those_of_each(loss: str, shape: tuple[int, ...], targets: Tensor) -> None:
    objective, outputs = objective_of(loss), torch.randn(*shape, dtype=torch.float64)
    several = torch.randn(5, len(outputs), outputs[0].numel(), dtype=torch.float64)
    expected = torch.stack([objective.mean(flat, [outputs], targets) for flat in several])
    assert len(set(expected.tolist())) == 5
    assert torch.allclose(objective.means(several, [outputs], targets), expected, rtol=1e-12, atol=0)
    assert torch.equal(objective.means(several[:1], [outputs], targets), expected[:1])


def test_several_outputs_go_through_a_callable_at_once_where_it_allows_that() -> None:
    objective = objective_of(counted)
    CALLS.clear()
    objective.means(torch.randn(5, 3, 4), [torch.randn(3, 4)], LABELS)
    assert [torch.Size([3, 4])] == CALLS
