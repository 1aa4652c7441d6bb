"""A growth step in a loop of the user's own: decided on, checked, applied, and refused where it does not fit."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

import archir
import archir.growing.plan as plan_module
from archir.cost import cost
from archir.errors import CaptureError, GrowError, ScoreError
from archir.growing.given_batches import GivenBatches
from archir.growing.growth import Growth, take_step
from archir.growing.step import StepContext
from archir.growing.step_batches import DealtBatches, deal
from archir.growing.training import evaluate
from archir.scoring.objective import make_objective
from archir.scoring.processes import ALONE
from archir.scoring.scores import Scores
from passes.split import Split

DOCS = Path(__file__).parents[2] / "docs"
OPTIONS = archir.GrowOptions(learn_steps=8, score_examples=60, batch_size=20, refine=12, recalibrate_batches=2)


class Net(nn.Module):
    """Two inputs by name, and outputs as a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.norm(self.left(a) + self.right(b)).tanh())}


def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"], targets)


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, 6, generator=generator) for _ in range(2))
    return a, b, (a[:, 0] * b[:, 1] > 0).long() + (a[:, 2] > 1).long()


def parted(tensor: Tensor, size: int | list[int]) -> tuple[Tensor, ...]:
    return torch.split(tensor, size)


def mlp(width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def trained(model: nn.Module, steps: int = 60) -> tuple[nn.Module, optim.Optimizer]:
    optimiser = optim.Adam(model.parameters(), 0.03)
    a, b, y = data(240)
    for _ in range(steps):
        optimiser.zero_grad()
        outputs = model(a, b)["logits"] if isinstance(model, Net) else model(a)
        torch.autograd.backward(F.cross_entropy(outputs, y))
        optimiser.step()
    return model, optimiser


def pairs(count: int = 240, seed: int = 1, size: int = 24) -> list[tuple[Tensor, Tensor]]:
    a, _, y = data(count, seed)
    return list(zip(parted(a, size), parted(y, size), strict=True))


def test_a_step_is_decided_on_checked_and_taken_in_a_plain_loop() -> None:
    model, optimizer = trained(mlp())
    drawn, gradients = torch.get_rng_state(), [p.grad for p in model.parameters()]
    plan = archir.propose(model, pairs(), budget=90, options=OPTIONS)
    assert torch.equal(torch.get_rng_state(), drawn), "the loop draws what it would have drawn"
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert plan.specs and plan.predicted is not None and plan.predicted < 0 > plan.realised
    assert {s.spec.partition("{")[0] for s in plan.table} == {"split", "prune"}
    assert plan.growth.before == cost(plan.before) and plan.cost == cost(plan.graph)
    assert all(spec in str(plan) for spec in plan.specs) and f"{plan.cost.parameters}" in str(plan)
    a, _, y = data(200, 9)
    checked = plan.check([(a, y)])
    for graph, found in ((plan.before, checked.before), (plan.graph, checked.after)):
        assert found == pytest.approx(float(F.cross_entropy(graph.module().eval()(a), y).detach()), rel=1e-6)
    assert checked.change == checked.after - checked.before
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    grown, its = plan.apply(model.train(), optimizer)
    assert grown is not model and type(its) is optim.Adam and grown.training
    assert all(torch.equal(t, plan.graph.tensor(n)) for n, t in grown.state_dict().items())
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items()), "the old model is as it was"
    assert sum(p.numel() for p in grown.parameters()) == plan.cost.parameters <= 90
    before = float(F.cross_entropy(grown(a), y).detach())
    for _ in range(20):
        its.zero_grad()
        torch.autograd.backward(F.cross_entropy(grown(a), y))
        its.step()
    assert float(F.cross_entropy(grown(a), y).detach()) < before
    assert {int(state["step"]) for state in its.state.values()} == {80}


def test_a_plan_tells_which_examples_its_figures_are_of() -> None:
    """What is printed first beside what was realised is of the same examples."""
    plan, _, _ = planned()
    assert plan.expected is not None and plan.expected < 0 and plan.expected != plan.predicted
    assert f"loss: {plan.expected:+.4f} predicted, {plan.realised:+.4f} realised on the examples it was" in str(plan)

    def told(**figures: float | None) -> str:
        growth = dataclasses.replace(plan.growth, **figures)  # type: ignore[arg-type]
        return str(dataclasses.replace(plan, growth=growth)).splitlines()[-1]

    assert told(predicted=0.0008, expected=-0.0012, realised=-0.0016) == (
        "loss: -0.0012 predicted, -0.0016 realised on the examples it was checked on"
    )
    assert told(predicted=0.02, expected=None, realised=0.01) == (
        "loss: +0.0100 realised on the examples it was checked on, +0.0200 predicted on those it was chosen on"
    )
    assert told(predicted=None, expected=None, realised=0.0) == (
        "loss: nothing predicted, +0.0000 realised on the examples it was checked on"
    )


def test_modules_are_captured_and_arguments_go_by_name_or_place() -> None:
    model, _ = trained(Net(), 15)
    a, b, y = data(240, 1)
    parts = [slice(i, i + 24) for i in range(0, 240, 24)]
    placed = [((a[p], b[p]), y[p]) for p in parts]
    named = [{"a": a[p], "b": b[p], "labels": y[p]} for p in parts]
    found = [archir.propose(model, given, budget=200, loss=loss, options=OPTIONS) for given in (placed, named)]
    assert found[0].specs == found[1].specs and found[0].specs
    assert found[0].predicted == found[1].predicted
    grown, _ = found[0].apply(model)
    torch.testing.assert_close(grown.eval()(a, b)["logits"], found[0].graph.module().eval()(a, b)["logits"])
    graph = archir.trace(model, (a, b))
    assert archir.propose(graph, placed, budget=200, loss=loss, options=OPTIONS).specs == found[0].specs


def test_loaders_are_gone_through_once_and_no_further_than_is_needed() -> None:
    model, _ = trained(mlp())
    a, _, y = data(2000, 1)
    seen = list[int]()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(zip(parted(a, 20), parted(y, 20), strict=True)):
            seen.append(number)
            yield batch

    plan = archir.propose(model, batches(), budget=90, options=OPTIONS)
    assert plan.specs
    # Eight to learn on, three to score and three to check on; two shares are full before the others.
    assert seen == [*range(len(seen))] and 14 <= len(seen) <= 18
    shuffled = DataLoader(TensorDataset(a, y), 20, shuffle=True)
    assert archir.propose(model, shuffled, budget=90, options=OPTIONS).table


def numbered(count: int) -> tuple[Tensor, Tensor]:
    """Examples that say which they are."""
    return torch.arange(count)[:, None].expand(count, 6).float(), torch.zeros(count, dtype=torch.long)


def shares(dealt: DealtBatches) -> list[set[int]]:
    def numbers(given: GivenBatches) -> set[int]:
        found = [int(n) for inputs, _ in given for n in next(iter(inputs.values()))[:, 0]]
        assert len(found) == len(set(found))
        return set(found)

    return [numbers(dealt.learn), numbers(dealt.selection), numbers(dealt.check)]


@pytest.mark.parametrize("sizes", [[240], [7] * 20, [40, 3, 1, 90], [2, 2], [4], [500] * 4])
def test_what_is_learned_scored_and_checked_on_shares_no_example(sizes: list[int]) -> None:
    objective = make_objective(archir.trace(mlp(), (torch.randn(3, 6),)), "cross_entropy")
    x, y = numbered(sum(sizes))
    batches = list(zip(parted(x, sizes), parted(y, sizes), strict=True))
    dealt = deal(objective, batches, size=16, most=48, steps=6)
    found = shares(dealt)
    assert all(found) and not any(one & other for one, other in itertools.combinations(found, 2))
    assert max(dealt.learn.sizes + dealt.selection.sizes + dealt.check.sizes) <= 16
    assert len(dealt.learn) <= 6 and max(len(s) for s in found[1:]) < 48 + 16
    again = deal(objective, batches, size=16, most=48, steps=6)
    assert shares(again) == found
    orders = [[int(i["input"][0, 0]) for i, _ in dealt.learned_on(s, torch.device("cpu"), ALONE)] for s in range(3)]
    assert all(sorted(o) == sorted(orders[0]) for o in orders) and (len(dealt.learn) < 4 or orders[1] != orders[2])
    assert dealt.timed_on.examples == 1


def test_batches_of_their_own_to_learn_and_to_check_on() -> None:
    objective = make_objective(archir.trace(mlp(), (torch.randn(3, 6),)), "cross_entropy")
    x, y = numbered(90)
    parts = [(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60)]
    how: dict[str, Any] = {"size": 16, "most": 30, "steps": 2}
    assert shares(deal(objective, parts[:1], learn=parts[1:2], check=parts[2:], **how)) == [
        {*range(30, 60)},
        {*range(30)},
        {*range(60, 90)},
    ]
    learn, selection, check = shares(deal(objective, parts[:1], learn=parts[1:2], **how))
    assert learn == {*range(30, 60)} and selection | check == {*range(30)} and not selection & check


def test_coupled_batches_stay_whole() -> None:
    objective = make_objective(archir.trace(mlp(), (torch.randn(3, 6),)), archir.coupled(lambda z, y: z.var()))
    x, y = numbered(90)
    batches = list(zip(parted(x, 30), parted(y, 30), strict=True))
    dealt = deal(objective, batches, size=16, most=30, steps=2)
    assert [d.sizes for d in (dealt.learn, dealt.selection, dealt.check)] == [[30], [30], [30]]
    with pytest.raises(
        GrowError, match=r"too few batches: none is left to learn on\n  why: .* are not cut\n  hint:  give"
    ):
        deal(objective, batches[:2], size=16, most=30, steps=2)


def test_a_budget_below_the_model_is_come_down_to() -> None:
    model, optimizer = trained(mlp(12))
    plan = archir.propose(model, pairs(), budget=archir.Budget(parameters=0.5), morphisms=["prune"], options=OPTIONS)
    assert plan.expected is None and plan.predicted is not None
    assert plan.growth.contracts and plan.cost.parameters <= plan.growth.before.parameters // 2
    assert "compensated" in plan.growth.mended
    grown, its = plan.apply(model, optimizer)
    assert all(s["exp_avg"].shape == p.shape for p, s in its.state.items())
    assert all(torch.equal(t, plan.graph.tensor(n)) for n, t in grown.state_dict().items())


def test_where_nothing_keeps_its_promise_all_stays_as_it_is() -> None:
    model, optimizer = trained(mlp())
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    plan = archir.propose(
        model,
        pairs(),
        budget=10_000,
        morphisms="split",
        options=OPTIONS,
        check=[(torch.zeros(9, 6), torch.arange(9) % 3)],
    )
    assert not plan.specs and "nothing is to be done" in str(plan) and plan.why and plan.predicted is None
    assert plan.apply(model, optimizer, scheduler=scheduler) == (model, optimizer)


def planned() -> tuple[archir.Plan, nn.Module, optim.Optimizer]:
    model, optimizer = trained(mlp(), 5)
    return archir.propose(model, pairs(), budget=90, options=OPTIONS), model, optimizer


def test_schedulers_averages_and_scalers_go_on_with_the_model() -> None:
    model, optimizer = trained(mlp())
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    average = optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, count: 0.9 * old + 0.1 * new)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    a, _, y = data(60, 3)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = F.cross_entropy(model(a), y)
        torch.autograd.backward(scaler.scale(found))
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        average.update_parameters(model)
        return float(optimizer.param_groups[0]["lr"])

    rates = [step() for _ in range(3)]
    plan = archir.propose(model, pairs(), budget=90, options=OPTIONS)
    model, optimizer = plan.apply(model, optimizer, scheduler=scheduler, ema=average)
    assert plan.specs and scheduler.optimizer is optimizer
    assert {n: p.shape for n, p in average.module.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    rates += [step() for _ in range(3)]
    plain = optim.SGD([nn.Parameter(torch.zeros(1))], 0.03)
    its = optim.lr_scheduler.CosineAnnealingLR(plain, 10)
    for rate in rates:
        plain.step()
        its.step()
        assert rate == plain.param_groups[0]["lr"]
    assert int(average.n_averaged) == 6 and scaler.get_scale() == 64.0


class Own(nn.Module):
    """A model with a method, and a size that is written into its code if it is asked for."""

    def __init__(self, written: bool = False) -> None:
        super().__init__()
        self.inner, self.outer, self.written = nn.Linear(6, 5), nn.Linear(5, 3), written

    def forward(self, a: Tensor) -> Tensor:
        x = self.inner(a).tanh()
        found: Tensor = self.outer(x.view(-1, 5) if self.written else x)
        return found


def test_in_place_the_model_the_optimiser_and_the_average_are_the_ones_that_were_given() -> None:
    model, optimizer = trained(Own())
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    average = optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, count: 0.5 * old + 0.5 * new)
    average.update_parameters(model)
    groups, inner = [*optimizer.param_groups], average.module
    plan = archir.propose(model, pairs(), budget=90, options=OPTIONS)
    twin, its = plan.apply(model, optimizer)
    found, same = plan.apply(model, optimizer, scheduler=scheduler, ema=average, in_place=True)
    assert found is model and same is optimizer and scheduler.optimizer is optimizer and average.module is inner
    assert plan.specs and all(one is other for one, other in zip(groups, optimizer.param_groups, strict=True))
    assert isinstance(inner, Own) and isinstance(model, Own)
    assert inner.inner.out_features == model.inner.out_features > 5
    a, _, y = data(50, 3)
    for net, one in ((model, optimizer), (twin, its)):
        one.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(a), y))
        one.step()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    scheduler.step()
    average.update_parameters(model)
    assert average(a).shape == (50, 3)


def test_hooks_and_attributes_of_the_model_stay_in_place_alone() -> None:
    model, _ = trained(Own())
    calls = list[nn.Module]()
    model.register_forward_hook(lambda module, args, outputs: calls.append(module))
    model.get_submodule("inner").register_forward_hook(lambda module, args, outputs: calls.append(module))
    plan = archir.propose(model, pairs(), budget=90, options=OPTIONS)
    grown, _ = plan.apply(model)
    calls.clear()
    grown(data(4)[0])
    assert plan.specs and not calls and not isinstance(grown, Own) and not hasattr(grown, "written")
    for text in ((DOCS / "loop.md").read_text(), str(archir.Plan.apply.__doc__)):
        told = " ".join(text.split())
        assert "hooks" in told and re.search("methods and attributes of (your own )?classes", told)
    plan.apply(model, in_place=True)
    calls.clear()  # it was run to be compared with the graph
    model(data(4)[0])
    assert calls == [model.get_submodule("inner"), model]


def test_what_cannot_be_done_in_place_changes_nothing() -> None:
    model, optimizer = trained(Own(written=True))
    average = optim.swa_utils.AveragedModel(model)
    plan = archir.propose(model, pairs(), budget=90, options=OPTIONS)
    before, groups = dict(model.named_parameters()), [[*g["params"]] for g in optimizer.param_groups]
    state = dict(optimizer.state)
    with pytest.raises(GrowError, match=r"where: .*test_propose\.py:\d+: .*x\.view\(-1, 5\)"):
        plan.apply(model, optimizer, ema=average, in_place=True)
    assert all(p is before[n] for n, p in model.named_parameters())
    assert [[*g["params"]] for g in optimizer.param_groups] == groups and dict(optimizer.state) == state
    assert {n: p.shape for n, p in average.module.named_parameters()} == {n: p.shape for n, p in before.items()}
    grown, _ = plan.apply(model, optimizer)
    assert grown(data(4)[0]).shape == (4, 3)


def test_models_that_have_changed_since_are_refused_and_nothing_is_changed() -> None:
    plan, model, optimizer = planned()
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    other = optim.lr_scheduler.ExponentialLR(optim.SGD(model.parameters(), 0.1), 0.9)
    with pytest.raises(GrowError, match="bound to another optimiser"):
        plan.apply(model, optimizer, scheduler=[scheduler, other])
    with pytest.raises(GrowError, match="parameters of the optimiser are not the model's"):
        plan.apply(model, optim.SGD(mlp().parameters(), 0.1))
    with pytest.raises(GrowError, match="no average"):
        plan.apply(model, optimizer, scheduler=scheduler, ema=nn.Linear(2, 2))
    assert scheduler.optimizer is optimizer
    with pytest.raises(
        GrowError, match=r"wrapped in DataParallel\n  hint:  give model.module, and wrap what comes back"
    ):
        plan.apply(nn.DataParallel(model), optimizer)
    with pytest.raises(
        GrowError, match=r"not the model that the plan was made for.*\n  why:   0.weight was \[5, 6\].*is \[6, 6\]"
    ):
        plan.apply(mlp(6))
    with pytest.raises(GrowError, match=r"0\.bias is not in the model"):
        plan.apply(nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)))
    model, optimizer = trained(model, 1)
    with pytest.raises(GrowError, match=r"holds other numbers.*\n  hint:  apply a plan before the next step"):
        plan.apply(model, optimizer)
    with pytest.raises(GrowError, match=r"nn\.Module, not a Graph"):
        plan.apply(plan.before)  # type: ignore[arg-type]


def test_the_modes_of_a_model_and_what_is_frozen_stay() -> None:
    model, _ = trained(Net())
    a, b, y = data(240, 1)
    plan = archir.propose(model, [((a, b), y)], budget=200, loss=loss, options=OPTIONS)
    model.train()
    model.get_submodule("norm").eval()
    model.get_submodule("head").requires_grad_(False)
    grown, _ = plan.apply(model)
    parts = dict(grown.named_modules())
    assert parts[""].training and not parts["norm"].training
    assert [n for n, p in grown.named_parameters() if not p.requires_grad] == ["head.weight", "head.bias"]


def test_the_step_is_the_one_that_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[StepContext]()

    def take(step: StepContext) -> tuple[Growth, Scores]:
        steps.append(step)
        return take_step(step)

    monkeypatch.setattr(plan_module, "take_step", take)
    plan, model, _ = planned()
    (step,) = steps
    held = step.batches.checked_on(torch.device("cpu"), step.processes)
    assert plan.growth.graph is plan.graph
    on_check = evaluate(plan.graph.module(), held, step.loss).loss
    assert plan.realised == pytest.approx(on_check - evaluate(model, held, step.loss).loss, abs=1e-6)


def test_bad_requests_are_refused() -> None:
    model, _ = trained(mlp(), 1)
    with pytest.raises(GrowError, match="growth needs a budget"):
        archir.propose(model, pairs(), budget=archir.Budget())
    with pytest.raises(GrowError, match="a dict is no GrowOptions"):
        archir.propose(model, pairs(), budget=90, options={})  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="no batches"):
        archir.propose(model, [], budget=90)
    with pytest.raises(ScoreError, match="no loss 'l'"):
        archir.propose(model, pairs(), budget=90, loss="l")
    with pytest.raises(CaptureError, match="not a str"):
        archir.propose("model", pairs(), budget=90)  # type: ignore[arg-type]
    with pytest.raises(GrowError, match="wrapped in DataParallel"):
        archir.propose(nn.DataParallel(model), pairs(), budget=90)
    with pytest.raises(GrowError, match="too few batches: none is left to score on and to learn on"):
        archir.propose(model, pairs(1), budget=90)
    assert archir.propose(model, pairs(), budget=90, morphisms=[Split()], options=OPTIONS).specs
