"""Training, recalibration and evaluation, against what torch's own modules do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.errors import GrowError
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.recalibration import recalibrate
from archir.growing.training import Metrics, evaluate, train
from archir.scoring.losses import find_loss
from frontends.pytorch import trace


class Net(nn.Module):
    """Two normalised layers, one of them used twice, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.inner = nn.Linear(4, 4)
        self.shared = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))
        return self.head(self.shared(self.inner(self.shared(x))))  # type: ignore[no-any-return]


def _split(count: int = 24, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return Examples(inputs, torch.randint(3, (count,), generator=generator))


def _images(split: Examples) -> Tensor:
    assert isinstance(split.inputs, Tensor)
    return split.inputs


def _labels(split: Examples) -> Tensor:
    assert isinstance(split.targets, Tensor)
    return split.targets


def _net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def test_training_is_the_plain_loop() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()
    twin, split = copy.deepcopy(module), _split()
    options = OptimiserOptions("sgd", rate=0.5, decay_all=True)
    done = train(module, Batches(split, 8), find_loss("cross_entropy"), options.build(module))
    optimiser = torch.optim.SGD(twin.parameters(), 0.5, momentum=0.9, weight_decay=5e-4, nesterov=True)
    losses = []
    for i in range(3):
        optimiser.zero_grad()
        batch = slice(8 * i, 8 * i + 8)
        loss = F.cross_entropy(twin(_images(split)[batch]), _labels(split)[batch])
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)
    assert (done.steps, done.examples) == (3, 24)
    assert done.loss == pytest.approx(sum(losses) / 3, rel=1e-12)


def test_a_lowered_graph_trains_as_the_model_it_came_from() -> None:
    model, split, loss = _net(), _split(), find_loss("cross_entropy")
    module = trace(model, _images(split)).module()
    for subject in (model, module):
        torch.manual_seed(1)
        optimiser = OptimiserOptions("adamw", rate=0.02).build(subject)
        train(subject, Batches(split, 8, seed=1), loss, optimiser)
    found = module.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(found[name], tensor, rtol=1e-10, atol=1e-12), name


def test_rates_and_steps_are_reported() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()
    optimiser = OptimiserOptions("sgd", 0.1).build(module)
    seen: list[tuple[int, float]] = []

    def note(step: int, loss: float) -> None:
        assert loss > 0
        seen.append((step, optimiser.param_groups[0]["lr"]))

    batches = Batches(_split(), 8)
    train(module, batches, find_loss("cross_entropy"), optimiser, rate=lambda s: s / 100, first_step=7, on_step=note)
    assert seen == [(7, 0.07), (8, 0.08), (9, 0.09)]


def test_long_gradients_are_clipped() -> None:
    module = nn.Linear(3, 1, bias=False).double()
    before = module.weight.detach().clone()
    split = Examples(torch.full((4, 3), 100.0, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    optimiser = OptimiserOptions("sgd", rate=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).build(module)
    train(module, Batches(split, 4), find_loss("mse"), optimiser, clip=0.01)
    assert (module.weight - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_outputs_are_computed_in_bfloat16_where_asked() -> None:
    """Weights, gradients, the loss and the optimiser stay in float32; a lowered graph does as its model."""
    split, seen = _split(), list[torch.dtype]()
    inputs = _images(split).float()
    split, model = Examples(inputs, _labels(split)), _net().float()
    model.drop.p = 0.0
    graph, states = trace(model, inputs), []

    def minimised(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    for precision in ("auto", "float32", "bfloat16"):
        module = graph.module()
        module.register_forward_hook(lambda _, __, outputs: seen.append(outputs.dtype))
        optimiser = OptimiserOptions("sgd", rate=0.1).build(module)
        train(
            module, Batches(split, 8), find_loss("cross_entropy"), optimiser, minimised=minimised, precision=precision
        )
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in module.parameters() if p.grad is not None)
        states.append(module.state_dict())
    assert seen == 4 * 3 * [torch.float32] + 3 * [torch.bfloat16, torch.float32]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), "auto is float32 on the CPU"
        torch.testing.assert_close(states[2][name], tensor, rtol=0.05, atol=0.02)
    assert not all(torch.equal(t, states[2][n]) for n, t in states[0].items())


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_weights() -> None:
    split = _split()
    _images(split)[9] = torch.inf
    module = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()
    states: list[dict[str, Tensor]] = []

    def note(step: int, loss: float) -> None:
        states.append(copy.deepcopy(module.state_dict()))

    with pytest.raises(GrowError, match=r"the loss is nan .* at step 6"):
        train(
            module,
            Batches(split, 8),
            find_loss("cross_entropy"),
            OptimiserOptions(rate=0.1).build(module),
            first_step=5,
            on_step=note,
        )
    assert len(states) == 1
    assert all(torch.equal(t, states[0][n]) for n, t in module.state_dict().items())


def test_training_on_nothing_is_refused() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(GrowError, match="no batches to train on"):
        train(module, [], find_loss("mse"), OptimiserOptions(rate=0.1).build(module))


def test_a_batch_the_model_rejects_is_named() -> None:
    with pytest.raises(GrowError, match=r"inputs \[4, 7\] torch.float32"):
        evaluate(nn.Linear(2, 1), Examples(torch.zeros(4, 7), torch.zeros(4)), find_loss("mse"))


def test_inputs_by_name_reach_the_model() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    inputs = {"b": torch.ones(4, 2), "a": torch.ones(4, 2)}
    assert evaluate(Sum(), Examples(inputs, torch.full((4, 2), 5.0)), find_loss("mse")) == Metrics(9.0, None)


def test_evaluation_is_the_mean_over_all_examples_whatever_the_batches() -> None:
    module, split, loss = _net(), _split(23), find_loss("cross_entropy")
    module.train()
    module.drop.eval()
    whole, parts = evaluate(module, split, loss), evaluate(module, split, loss, batch_size=5)
    module.eval()
    outputs = module(split.inputs)
    assert whole.loss == pytest.approx(F.cross_entropy(outputs, _labels(split)).item(), rel=1e-12)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert whole.accuracy == parts.accuracy == float((outputs.argmax(1) == _labels(split)).double().mean())


def test_evaluation_leaves_every_mode_as_it_was() -> None:
    module = _net()
    module.drop.eval()
    evaluate(module, _split(), find_loss("cross_entropy"))
    assert module.training and module.norm.training and not module.drop.training


def test_accuracy_of_binary_labels_and_of_callables() -> None:
    identity, logits = nn.Identity(), torch.tensor([[-1.0], [2.0], [3.0], [-4.0]])
    labels = torch.tensor([0, 1, 0, 0])
    assert evaluate(identity, Examples(logits, labels), find_loss("bce_with_logits")).accuracy == 0.75
    two = Examples(torch.cat([-logits, logits], 1), labels)
    assert evaluate(identity, two, find_loss(nn.CrossEntropyLoss())).accuracy == 0.75
    assert evaluate(identity, Examples(logits, labels.float()), find_loss("mse")).accuracy is None


def test_evaluation_refuses_a_loss_that_is_not_finite() -> None:
    split = Examples(torch.full((4, 1), torch.nan), torch.zeros(4))
    with pytest.raises(GrowError, match="is nan"):
        evaluate(nn.Identity(), split, find_loss("mse"))


def _cumulative_twin(module: Net, split: Examples, size: int) -> Net:
    """Return the module recalibrated as torch does it: momentum None, only the normalisations in training mode."""
    twin = copy.deepcopy(module).eval()
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
            part.train()
    with torch.no_grad():
        for inputs, _ in Batches(split, size):
            twin(inputs)
    return twin


@pytest.mark.parametrize("lowered", [False, True])
def test_recalibration_is_torchs_cumulative_average(lowered: bool) -> None:
    module, split = _net(), _split()
    assert module.norm.running_mean is not None
    module.norm.running_mean.add_(3.0)
    expected = _cumulative_twin(module, split, 7).state_dict()
    subject = trace(module, _images(split)).module() if lowered else module
    subject.train()
    recalibrate(subject, Batches(split, 7))
    found = subject.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(tensor, expected[name], rtol=1e-12, atol=1e-14), name
    assert subject.training


def test_recalibration_leaves_momentum_and_weights_as_they_were() -> None:
    module = _net()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    recalibrate(module, Batches(_split(), 8))
    assert module.norm.momentum == 0.1
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    again = copy.deepcopy(module.state_dict())
    recalibrate(module, Batches(_split(), 8))
    assert all(torch.allclose(t, again[n], rtol=1e-12) for n, t in module.state_dict().items())


def test_recalibration_without_normalisation_changes_nothing() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(50, 3)).double()
    before = copy.deepcopy(module.state_dict())
    recalibrate(module, Batches(_split(), 8))
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_recalibration_refuses_what_it_cannot_average() -> None:
    with pytest.raises(GrowError, match="no batches to recalibrate on"):
        recalibrate(_net(), [])
    split = Examples(torch.full((4, 2, 5, 5), torch.nan, dtype=torch.float64), torch.zeros(4))
    with pytest.raises(GrowError, match="batch statistics are not finite"):
        recalibrate(_net(), Batches(split, 4))
