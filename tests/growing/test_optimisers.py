"""Optimisers, schedules, and optimiser state that survives being written as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archir.errors import GrowError
from archir.growing.optimisers import USUAL, OptimiserOptions, optimiser_tensors, restore_optimiser


class Tied(nn.Module):
    """A weight used under two names, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh()) * self.frozen  # type: ignore[no-any-return]


def _net() -> Tied:
    torch.manual_seed(0)
    return Tied().double()


def _step(module: nn.Module, optimiser: torch.optim.Optimizer, count: int) -> None:
    for i in range(count):
        optimiser.zero_grad()
        torch.autograd.backward(module(torch.full((2, 3), 0.1 * i, dtype=torch.float64)).square().sum())
        optimiser.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_interrupted_run_goes_on_exactly(name: str) -> None:
    options = OptimiserOptions(name, rate=0.05)
    whole, first = _net(), _net()
    _step(whole, optimiser := options.build(whole), 3)
    _step(first, stopped := options.build(first), 3)
    kept, weights = optimiser_tensors(stopped, first), {n: t.clone() for n, t in first.state_dict().items()}
    _step(first, stopped, 1)
    again = _net()
    again.load_state_dict(weights)
    resumed = options.build(again)
    restore_optimiser(resumed, again, kept)
    for module, its in ((whole, optimiser), (again, resumed)):
        _step(module, its, 4)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


def test_state_is_named_by_slot_and_parameter_tied_ones_once() -> None:
    module = _net()
    _step(module, optimiser := OptimiserOptions("adamw", rate=0.01).build(module), 1)
    slots = ("step", "exp_avg", "exp_avg_sq")
    assert set(optimiser_tensors(optimiser, module)) == {
        f"{slot}/{name}" for slot in slots for name in ("a.weight", "a.bias", "b.bias")
    }


def test_state_that_does_not_fit_is_refused_whole() -> None:
    module = _net()
    _step(module, optimiser := OptimiserOptions("sgd", rate=0.01).build(module), 1)
    before = optimiser_tensors(optimiser, module)
    with pytest.raises(GrowError, match=r"'momentum_buffer/a.weigth' belongs to no parameter\n  hint:  did you mean"):
        restore_optimiser(optimiser, module, {"momentum_buffer/a.weigth": torch.zeros(3, 3)})
    with pytest.raises(GrowError, match=r"is \[4, 3\], not \[3, 3\]"):
        restore_optimiser(optimiser, module, {"momentum_buffer/a.weight": torch.zeros(4, 3)})
    after = optimiser_tensors(optimiser, module)
    assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())


def test_optimisers_are_those_of_torch() -> None:
    sgd = OptimiserOptions("sgd", rate=0.3, momentum=0.8, weight_decay=0.01).build(_net())
    assert isinstance(sgd, torch.optim.SGD)
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "nesterov", "weight_decay")} == {
        "lr": 0.3,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.01,
    }
    adamw = OptimiserOptions("adamw", rate=0.002, betas=(0.8, 0.9)).build(_net())
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["betas"]) == (0.002, (0.8, 0.9))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_biases_and_norms_do_not_decay_unless_all_do(name: str, decay_all: bool) -> None:
    """Without gradients, one step of AdamW or SGD takes `rate * weight_decay` of what decays."""
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).double()
    nn.init.ones_(module[0].bias)  # type: ignore[arg-type]
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimiser = OptimiserOptions(name, rate=0.5, weight_decay=0.1, nesterov=False, decay_all=decay_all).build(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for n, parameter in module.named_parameters():
        left = 0.95 if decay_all or n == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), left * before[n], rtol=1e-12, atol=0)


def test_networks_of_vectors_alone_are_optimised() -> None:
    assert [len(g["params"]) for g in OptimiserOptions(rate=0.1).build(nn.LayerNorm(3)).param_groups] == [2]
    assert [len(g["params"]) for g in OptimiserOptions(rate=0.1).build(nn.Linear(3, 1, bias=False)).param_groups] == [1]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_decay_is_the_usual_one_unless_it_is_given(name: str) -> None:
    assert OptimiserOptions(name, 0.1).build(_net()).param_groups[0]["weight_decay"] == USUAL[name]
    assert OptimiserOptions(name, 0.1, 0.0).build(_net()).param_groups[0]["weight_decay"] == 0


def test_bad_optimisers_are_refused() -> None:
    with pytest.raises(GrowError, match=r"no optimiser 'adam': did you mean adamw\?"):
        OptimiserOptions("adam")
    with pytest.raises(GrowError, match="momentum above 0"):
        OptimiserOptions("sgd", momentum=0.0)
    with pytest.raises(GrowError, match=r"rate is -1\.0"):
        OptimiserOptions("sgd", rate=-1.0)
    with pytest.raises(GrowError, match="no trainable parameters"):
        OptimiserOptions(rate=0.1).build(nn.ReLU())


KINDS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "groups": lambda p: torch.optim.AdamW([dict[str, Any](params=p[:1], amsgrad=True), {"params": p[1:]}], lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_state_of_any_optimiser_goes_on_exactly_and_no_other_is_taken(name: str) -> None:
    def made(net: Tied) -> torch.optim.Optimizer:
        return KINDS[name]([p for p in net.parameters() if p.requires_grad])

    whole = _net()
    _step(whole, optimiser := made(whole), 3)
    again = _net()
    again.load_state_dict(whole.state_dict())
    restore_optimiser(resumed := made(again), again, kept := optimiser_tensors(optimiser, whole))
    for key, tensor in kept.items():
        slot = key.partition("/")[0]
        wrong = {"too large": {key: torch.zeros(*tensor.shape, 2)}, "not finite": {key: tensor * math.nan}}
        wrong |= {"another type": {key: tensor.to(torch.float16)}, "unknown": {f"x{slot}/a.bias": tensor}}
        for change in wrong.values():
            with pytest.raises(GrowError, match="optimiser state '"):
                restore_optimiser(resumed, again, {**kept, **change})
        with pytest.raises(GrowError, match=f"lacks {slot}"):
            restore_optimiser(resumed, again, {k: t for k, t in kept.items() if k != key})
    for module, its in ((whole, optimiser), (again, resumed)):
        _step(module, its, 4)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_parameters_without_state_start_afresh(name: str) -> None:
    """As those of fresh layers do; Adagrad, for one, keeps sums from the start."""
    first, again = _net(), _net()
    trained = [[p for p in net.parameters() if p.requires_grad] for net in (first, again)]
    _step(first, optimiser := KINDS[name](trained[0]), 2)
    kept = {k: t for k, t in optimiser_tensors(optimiser, first).items() if not k.endswith("/b.bias")}
    restore_optimiser(resumed := KINDS[name](trained[1]), again, kept)
    fresh = KINDS[name](trained[1]).state.get(again.b.bias, {})
    torch.testing.assert_close(resumed.state.get(again.b.bias, {}), fresh, rtol=0, atol=0)
    _step(again, resumed, 2)


def test_state_of_weights_that_are_not_trained_is_refused() -> None:
    module = _net()
    with pytest.raises(GrowError, match=r"'momentum_buffer/frozen' belongs to no parameter"):
        state = {"momentum_buffer/frozen": torch.zeros(3, dtype=torch.float64)}
        restore_optimiser(OptimiserOptions("sgd", 0.1).build(module), module, state)


def test_asking_for_the_state_changes_nothing() -> None:
    module = _net()
    optimiser = OptimiserOptions("adamw", 0.1).build(module)
    assert optimiser_tensors(optimiser, module) == {} and not optimiser.state
    restore_optimiser(optimiser, module, {})
    assert not optimiser.state and all(p.grad is None for p in module.parameters())
