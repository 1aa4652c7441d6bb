"""Losses: per-example values against torch's own, callables, and what bad input gets."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.errors import ScoreError
from archir.scoring.losses import Loss, check_loss, class_axis, find_loss


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_torchs_for_one_label_an_example() -> None:
    logits, labels = _random(5, 3), torch.tensor([0, 1, 2, 2, 1])
    loss = find_loss("cross_entropy")
    assert torch.equal(loss.per_example(logits, labels), F.cross_entropy(logits, labels, reduction="none"))
    assert torch.allclose(loss(logits, labels), F.cross_entropy(logits, labels), rtol=1e-14)


@pytest.mark.parametrize("axis", [1, 3])
def test_cross_entropy_finds_the_class_axis(axis: int) -> None:
    logits = _random(4, 7, 2, 3)
    labels = torch.randint(7, (4, 2, 3), generator=torch.Generator().manual_seed(1))
    losses = find_loss("cross_entropy").per_example(logits.movedim(1, axis), labels)
    assert losses.shape == (4,)
    assert torch.allclose(losses, F.cross_entropy(logits, labels, reduction="none").mean((1, 2)), rtol=1e-14)


def test_cross_entropy_takes_class_probabilities() -> None:
    logits, wanted = _random(4, 3), _random(4, 3, seed=1).softmax(1)
    expected = -(wanted * logits.log_softmax(1)).sum(1)
    assert torch.allclose(find_loss("cross_entropy").per_example(logits, wanted), expected, rtol=1e-14)


@pytest.mark.parametrize("axis", [1, 2])
def test_positions_without_a_label_are_left_out_of_the_mean_of_their_example(axis: int) -> None:
    logits, loss = _random(4, 5, 3), find_loss("cross_entropy")
    labels = torch.tensor([[0, 1, 2], [-100, 4, -100], [3, -100, 0], [-100, -100, -100]])
    rows = [F.cross_entropy(logits[i].mT, labels[i]) for i in range(3)]
    expected = torch.stack([*rows, torch.zeros((), dtype=torch.float64)])
    moved = logits.movedim(1, axis)
    assert torch.allclose(loss.per_example(moved, labels), expected, rtol=1e-14)
    assert float(loss(moved, labels)) == pytest.approx(float(expected.mean()), rel=1e-14)
    check_loss(loss, moved, labels)


def test_an_example_without_a_label_counts_zero() -> None:
    logits = _random(2, 3)
    losses = find_loss("cross_entropy").per_example(logits, torch.tensor([-100, 1]))
    assert torch.equal(losses, torch.stack([torch.zeros_like(losses[0]), -logits[1].log_softmax(0)[1]]))


def test_class_numbers_the_model_lacks_are_refused() -> None:
    with pytest.raises(ScoreError, match="run from 1 to 3, the model has 3"):
        find_loss("cross_entropy")(_random(3, 3), torch.tensor([-100, 1, 3]))


def test_an_ambiguous_class_axis_is_refused() -> None:
    with pytest.raises(ScoreError, match="ambiguous"):
        class_axis(_random(2, 5, 5), torch.zeros(2, 5, dtype=torch.int64))


def test_outputs_that_fit_no_class_axis_are_refused() -> None:
    with pytest.raises(ScoreError, match=r"outputs \[2, 5\] do not fit class numbers \[3\]"):
        find_loss("cross_entropy")(_random(2, 5), torch.zeros(3, dtype=torch.int64))


def test_probabilities_of_another_shape_are_refused() -> None:
    with pytest.raises(ScoreError, match="class probabilities"):
        find_loss("cross_entropy")(_random(2, 5), _random(2, 4))


def test_mse_lines_up_axes_of_size_one_instead_of_broadcasting() -> None:
    outputs, targets = _random(6, 1), _random(6, seed=1)
    losses = find_loss("mse").per_example(outputs, targets)
    assert torch.allclose(losses, (outputs[:, 0] - targets) ** 2, rtol=1e-14)


def test_mse_is_torchs() -> None:
    outputs, targets = _random(6, 2, 3), _random(6, 2, 3, seed=1)
    assert torch.allclose(find_loss("mse")(outputs, targets), F.mse_loss(outputs, targets), rtol=1e-14)


@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ScoreError, match=f"the loss {name} cannot compare"):
        find_loss(name)(_random(6, 2), _random(6, 3))
    with pytest.raises(ScoreError, match=f"the loss {name} cannot compare"):
        find_loss(name)(_random(6, 1), _random(5))


def test_binary_cross_entropy_is_torchs_and_takes_integers() -> None:
    logits, labels = _random(4, 3), torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    expected = F.binary_cross_entropy_with_logits(logits, labels.double())
    assert torch.allclose(find_loss("bce_with_logits")(logits, labels), expected, rtol=1e-14)


def test_named_losses_refuse_nested_outputs() -> None:
    with pytest.raises(ScoreError, match="takes one tensor, the model returns a tuple"):
        find_loss("mse")((_random(2),), _random(2))


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "bce_with_logits"])
def test_named_losses_refuse_several_targets(name: str) -> None:
    with pytest.raises(ScoreError, match=f"the loss {name} takes one tensor of targets, the batch has a dict"):
        find_loss(name)(_random(2, 3), {"a": _random(2, 3)})


def test_several_targets_of_a_mean_are_taken_apart() -> None:
    class Pair(NamedTuple):
        labels: Tensor
        values: Tensor

    def both(outputs: Tensor, targets: dict[str, Pair]) -> Tensor:
        pair = targets["pair"]
        return F.cross_entropy(outputs, pair.labels) + F.mse_loss(outputs[:, 0], pair.values)

    logits, pair = _random(5, 3), Pair(torch.tensor([0, 1, 2, 2, 1]), _random(5, seed=1))
    loss = find_loss(both)
    expected = F.cross_entropy(logits, pair.labels, reduction="none") + (logits[:, 0] - pair.values) ** 2
    assert torch.allclose(loss.per_example(logits, {"pair": pair}), expected, rtol=1e-12)
    check_loss(loss, logits, {"pair": pair})


def test_unknown_names_get_close_matches() -> None:
    with pytest.raises(ScoreError, match="did you mean cross_entropy"):
        find_loss("crossentropy")


def test_a_loss_is_returned_as_it_is() -> None:
    assert find_loss(find_loss("mse")) is find_loss("mse")


def test_a_callable_that_returns_a_mean_is_taken_apart() -> None:
    loss = find_loss(nn.CrossEntropyLoss())
    logits, labels = _random(5, 3), torch.tensor([0, 1, 2, 2, 1])
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert loss.name == "CrossEntropyLoss"
    assert torch.allclose(loss.per_example(logits, labels), expected, rtol=1e-14)
    assert torch.allclose(loss(logits, labels), expected.mean(), rtol=1e-14)
    check_loss(loss, logits, labels)


def test_a_callable_that_returns_one_loss_an_example_is_used_as_it_is() -> None:
    def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs()

    loss = find_loss(absolute)
    outputs, targets = _random(5), _random(5, seed=1)
    assert loss.name == "absolute"
    assert torch.equal(loss.per_example(outputs, targets), (outputs - targets).abs())
    assert torch.equal(loss(outputs, targets), (outputs - targets).abs().mean())


def test_a_callable_may_take_nested_outputs() -> None:
    def first(outputs: dict[str, tuple[Tensor, int]], targets: Tensor) -> Tensor:
        return F.mse_loss(outputs["out"][0], targets)

    outputs, targets = _random(5), _random(5, seed=1)
    parts = find_loss(first).per_example({"out": (outputs, 3)}, targets)
    assert torch.allclose(parts, (outputs - targets) ** 2, rtol=1e-14)


def test_per_example_losses_have_gradients_under_function_transforms() -> None:
    logits, labels = _random(4, 3), torch.tensor([0, 1, 2, 1])

    for spec in ("cross_entropy", nn.CrossEntropyLoss()):
        loss = find_loss(spec)

        def total(x: Tensor, loss: Loss = loss) -> Tensor:
            return loss.per_example(x, labels).sum()

        gradient = torch.func.grad(total)(logits)
        assert torch.allclose(gradient, logits.softmax(1) - F.one_hot(labels, 3), rtol=1e-12)


def test_a_loss_that_is_not_a_mean_over_examples_is_found_out() -> None:
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.mean()).square().sum() + targets.sum()

    with pytest.raises(ScoreError, match="spread is not a mean over examples"):
        check_loss(find_loss(spread), _random(5), _random(5))


def test_a_loss_of_the_wrong_shape_is_found_out() -> None:
    def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:2] - targets[:2]

    with pytest.raises(ScoreError, match="for 5 examples"):
        check_loss(find_loss(wrong), _random(5), _random(5))


def test_a_loss_that_is_not_finite_is_found_out() -> None:
    outputs = _random(4)
    outputs[2] = torch.nan
    with pytest.raises(ScoreError, match=r"the loss mse is nan\n  where: example 2"):
        check_loss(find_loss("mse"), outputs, _random(4))
