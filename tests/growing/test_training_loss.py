"""Smoothed labels and mixes of examples, against what they mean; in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archir
from archir.errors import GrowError
from archir.growing.batches import Augmentation, Batches
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.training import train
from archir.growing.training_loss import Mixed, training_loss
from archir.scoring.losses import LOSSES, coupled, find_loss

CE = LOSSES["cross_entropy"]


def _double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("last", [False, True])
def test_smoothed_labels_are_those_of_torch(last: bool) -> None:
    logits, labels = _double(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    smoothed = training_loss(CE, smoothing=0.2)
    assert smoothed(logits, labels).item() == pytest.approx(
        F.cross_entropy(logits, labels, label_smoothing=0.2).item(), rel=1e-12
    )
    several, positions = _double(2, 5, 3), torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = F.cross_entropy(several, positions, label_smoothing=0.2).item()
    given = several.movedim(1, -1) if last else several
    assert smoothed(given, positions).item() == pytest.approx(expected, rel=1e-12)


def test_smoothed_probabilities_are_those_of_torch() -> None:
    logits, wanted = _double(6, 5), _double(6, 5, seed=1).softmax(1)
    expected = F.cross_entropy(logits, wanted, label_smoothing=0.3).item()
    assert training_loss(CE, smoothing=0.3)(logits, wanted).item() == pytest.approx(expected, rel=1e-12)


def test_positions_without_a_label_are_not_smoothed() -> None:
    """An example counts the mean over its labelled positions, as in the plain loss."""
    logits, labels = _double(2, 5, 3), torch.tensor([[0, -100, 2], [-100, -100, 4]])
    expected = [
        F.cross_entropy(logits[i : i + 1], labels[i : i + 1], label_smoothing=0.2).item() for i in range(2)
    ]  # torch's mean runs over the labelled positions
    assert training_loss(CE, smoothing=0.2)(logits, labels).item() == pytest.approx(sum(expected) / 2, rel=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "callable"])
def test_the_loss_of_a_mix_is_the_mix_of_the_losses(loss: str) -> None:
    found = find_loss(nn.CrossEntropyLoss() if loss == "callable" else loss)
    outputs = _double(4, 3)
    first, second = (_double(4, 3, seed=s) for s in (1, 2)) if loss == "mse" else (torch.arange(4) % 3,) * 2
    mixed = Mixed(first, second.flip(0), torch.full((4,), 0.3, dtype=torch.float64))
    expected = 0.3 * found(outputs, first) + 0.7 * found(outputs, second.flip(0))
    torch.testing.assert_close(training_loss(found, mixup=1.0)(outputs, mixed), expected, rtol=1e-12, atol=0)


def test_what_does_not_fit_the_loss_is_refused() -> None:
    for loss in ("mse", "bce_with_logits", nn.CrossEntropyLoss()):
        with pytest.raises(GrowError, match=r"label_smoothing is 0\.1, and only cross_entropy takes labels"):
            training_loss(find_loss(loss), smoothing=0.1)
    whole = coupled(lambda outputs, targets: outputs.mean() * targets.mean())
    with pytest.raises(GrowError, match=r"label_smoothing is 0\.1.*; mixup is 0\.2, and the loss is no mean"):
        training_loss(whole, smoothing=0.1, mixup=0.2)


def test_a_run_that_does_not_fit_its_loss_does_not_begin() -> None:
    graph = archir.trace(nn.Linear(4, 1), torch.ones(2, 4))
    data, options = (torch.ones(8, 4), torch.ones(8, 1)), GrowOptions(steps=8, label_smoothing=0.1)
    with pytest.raises(GrowError, match="label_smoothing"):
        archir.grow(graph, train=data, validation=data, budget=50, loss="mse", options=options)


def test_training_takes_the_gradient_of_the_mix() -> None:
    """One step of plain SGD is that of a twin on the mixed batch, with smoothed labels."""
    module = nn.Linear(3, 4).double()
    twin = nn.Linear(3, 4).double()
    twin.load_state_dict(module.state_dict())
    options = GrowOptions(steps=8, label_smoothing=0.1, augmentation=Augmentation(mixup=0.4))
    batches = Batches(Examples(_double(6, 3), torch.arange(6) % 4), 6, seed=3, augmentation=options.augmentation)
    optimiser = OptimiserOptions("sgd", rate=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).build(module)
    done = train(module, batches, CE, optimiser, minimised=options.training_loss(CE))
    ((inputs, targets),) = batches
    assert isinstance(targets, Mixed) and isinstance(inputs, Tensor)
    assert isinstance(targets.first, Tensor) and isinstance(targets.second, Tensor)
    share = targets.share[0]
    parts = [F.cross_entropy(twin(inputs), t, label_smoothing=0.1) for t in (targets.first, targets.second)]
    loss = share * parts[0] + (1 - share) * parts[1]
    torch.autograd.backward(loss)
    assert twin.weight.grad is not None
    assert done.loss == pytest.approx(loss.item(), rel=1e-12) and done.examples == 6
    torch.testing.assert_close(module.weight.detach(), twin.weight.detach() - twin.weight.grad, rtol=1e-12, atol=1e-14)
