"""Optimisers, schedulers and averages of a user's own loop go on after a rewriting as if it had always been so."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from archir.axes.infer import infer_widths
from archir.errors import GrowError
from archir.growing.loop import check_average, check_optimiser, check_schedulers, grown_average, grown_optimiser
from archir.growing.optimiser_state import COLUMNS, ROWS
from archir.growing.plan import in_the_manner_of
from archir.ir.graph import Graph, Patch
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from archir.testing import randomise
from frontends.pytorch import trace
from passes.deepen import Deepen
from passes.duplicate_block import DuplicateBlock
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen

INPUTS = [torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]


class Net(nn.Module):
    """A convolution with batch statistics, a layer without a bias, and a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.body = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(x).mean((2, 3))).tanh()) * self.scale
        return logits


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return randomise(trace(Net().double().eval(), (INPUTS[0],)))


def patch(graph: Graph, *members: Morphism) -> Patch:
    return rewrite_together(graph, [(m, None) for m in members])


def split(graph: Graph) -> Patch:
    """Every unit becomes two; what is gathered in factors then is exactly what it would have been."""
    return patch(graph, *(Split(width.name) for width in infer_widths(graph)))


def backward(module: nn.Module, x: Tensor) -> None:
    module.zero_grad()
    torch.autograd.backward(module.eval()(x).sin().sum())


def gather(module: nn.Module, optimiser: optim.Optimizer, inputs: Sequence[Tensor] = tuple(INPUTS)) -> None:
    """Let an optimiser gather gradients of weights that stand still."""
    sparse = isinstance(optimiser, optim.SparseAdam)
    weights = [p.detach().clone() for p in module.parameters()]
    for x in inputs:
        backward(module, x)
        for p in module.parameters():
            p.grad = None if p.grad is None else p.grad.to_sparse() if sparse else p.grad
        optimiser.step()
        with torch.no_grad():
            for p, weight in zip(module.parameters(), weights, strict=True):
                p.copy_(weight)


Make = Callable[[list[nn.Parameter]], optim.Optimizer]

TINY = 1e-30
"""An `eps` that is nothing beside squares of gradients, for what is invariant to their size but for it."""

KINDS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "plain": lambda p: optim.SGD(p, 0.1),
    "adam": lambda p: optim.Adam(p, 0.1, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.1, foreach=True),
    "nadam": lambda p: optim.NAdam(p, 0.1),
    "radam": lambda p: optim.RAdam(p, 0.1),
    "sparse": lambda p: optim.SparseAdam(p, 0.1),
    "adamax": lambda p: optim.Adamax(p, 0.1, eps=TINY),
    "adagrad": lambda p: optim.Adagrad(p, 0.1, initial_accumulator_value=0.3),
    "adadelta": lambda p: optim.Adadelta(p, 0.1, eps=TINY),
    "rmsprop": lambda p: optim.RMSprop(p, 0.1, momentum=0.9, centered=True, eps=TINY),
    "rprop": lambda p: optim.Rprop(p, 0.1),
    "asgd": lambda p: optim.ASGD(p, 0.0),
    "adafactor": lambda p: optim.Adafactor(p, 0.1),
    "muon": lambda p: optim.Muon([q for q in p if q.dim() == 2], 0.1),
}


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def state_of(optimiser: optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    named = module.named_parameters()
    return {f"{k}/{n}": v for n, p in named for k, v in optimiser.state.get(p, {}).items() if v is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_on_as_if_they_had_been_there_from_the_first_step(graph: Graph, kind: str) -> None:
    """State, and the weights after the next step, are those of the dense twin that was wide from the beginning."""
    module, rewriting = graph.module(), split(graph)
    gather(module, optimiser := KINDS[kind](trained(module)))
    grown = in_the_manner_of(module, rewriting.after)
    for x in INPUTS:
        torch.testing.assert_close(grown.eval()(x), module.eval()(x), rtol=1e-12, atol=1e-14)
    carried = grown_optimiser(optimiser, module, rewriting, grown)
    twin = rewriting.after.module()
    gather(twin, its := KINDS[kind](trained(twin)))
    assert type(carried) is type(its) and carried is not optimiser
    found, wanted = state_of(carried, grown), state_of(its, twin)
    assert found or kind == "plain"
    assert any(t.dim() for t in found.values() if isinstance(t, Tensor)) or kind == "plain"
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    for net, one in ((grown, carried), (twin, its)):
        gather(net, one, INPUTS[:1])  # leaves the weights where they are
        backward(net, INPUTS[1])
        for p in net.parameters():
            p.grad = p.grad.to_sparse() if kind == "sparse" and p.grad is not None else p.grad
        one.step()
    torch.testing.assert_close(grown.state_dict(), twin.state_dict(), rtol=1e-8, atol=1e-10)
    moved = any(not torch.equal(t, rewriting.after.tensor(n)) for n, t in grown.state_dict().items())
    assert moved or kind == "asgd"


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimiser_goes_on_through_growth_and_removal(graph: Graph, kind: str) -> None:
    """Fresh units and layers beside what was there: shapes fit, a step moves all, and the old one is as it was."""
    widths = infer_widths(graph)
    module = graph.module()
    gather(module, optimiser := KINDS[kind](trained(module)))
    before = copy.deepcopy(state_of(optimiser, module))
    first, second = (w.name for w in widths)
    members: list[Morphism] = [Widen(first, 2), Prune(second, (1,))]
    if kind != "muon":  # which takes matrices alone
        members.append(next(iter(Deepen().sites(graph))).members[0])
    rewriting = patch(graph, *members)
    grown = in_the_manner_of(module, rewriting.after)
    found = grown_optimiser(optimiser, module, rewriting, grown)
    own = dict(grown.named_parameters())
    for key, value in state_of(found, grown).items():
        slot, _, name = key.partition("/")
        if slot not in (ROWS, COLUMNS) and isinstance(value, Tensor) and value.dim():
            assert value.shape == own[name].shape, key
    weights = {n: p.detach().clone() for n, p in own.items()}
    for group in found.param_groups:
        group["lr"] = 0.1
    backward(grown, INPUTS[0])
    for p in grown.parameters():
        p.grad = p.grad.to_sparse() if kind == "sparse" and p.grad is not None else p.grad
    found.step()
    held = {n for n, p in own.items() if any(p is q for g in found.param_groups for q in g["params"])}
    assert held == {n for n, p in own.items() if p.requires_grad and (kind != "muon" or p.dim() == 2)}
    still = [n for n in held if torch.equal(own[n].detach(), weights[n])]
    assert not still or kind == "asgd"
    assert all(bool(torch.isfinite(p).all()) for p in own.values())
    torch.testing.assert_close(state_of(optimiser, module), before, rtol=0, atol=0)


def test_what_starts_elsewhere_than_at_zero_does_so_at_new_places(graph: Graph) -> None:
    rewriting = patch(graph, Widen(next(iter(infer_widths(graph))).name, 2))
    for kind, slot, start in (("adagrad", "sum", 0.3), ("rprop", "step_size", 0.1)):
        module = graph.module()
        gather(module, optimiser := KINDS[kind](trained(module)))
        grown = in_the_manner_of(module, rewriting.after)
        state = state_of(grown_optimiser(optimiser, module, rewriting, grown), grown)
        changed = [name for name in dict(grown.named_parameters()) if rewriting.maps.get(graph.by_name[name].id)]
        for name in changed:
            by = rewriting.maps[graph.by_name[name].id]
            assert by is not None
            fresh = by.fresh(graph.tensor(name))
            assert fresh.any() and bool((state[f"{slot}/{name}"][fresh] == start).all())
            assert not bool((state[f"{slot}/{name}"][~fresh] == start).all()) or slot == "step_size"


class Foreign(optim.Optimizer):
    """An optimiser of somebody else's."""

    def __init__(self, params: list[nn.Parameter], shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__(params, {"lr": 0.1})
        self.shape = shape

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p] = {"seen": self.shape(p.grad).clone(), "count": self.state[p].get("count", 0) + 1}


def test_of_other_optimisers_what_has_the_shape_of_a_parameter_is_reindexed_and_the_rest_refused(graph: Graph) -> None:
    module, rewriting = graph.module(), split(graph)
    gather(module, optimiser := Foreign(trained(module), lambda g: g))
    optimiser.state["all"] = {"calls": 1}  # type: ignore[index]
    grown = in_the_manner_of(module, rewriting.after)
    found = grown_optimiser(optimiser, module, rewriting, grown)
    assert isinstance(found, Foreign) and found.shape is optimiser.shape and found.state["all"] == {"calls": 1}  # type: ignore[index]
    state, old = state_of(found, grown), state_of(optimiser, module)
    assert state["count/body.weight"] == 3
    weight = old["seen/body.weight"]
    assert torch.equal(state["seen/body.weight"], weight.repeat_interleave(1, 0)[[*range(4)] * 2][:, [*range(3)] * 2])
    gather(module, odd := Foreign(trained(module), lambda g: g.flatten()[:1]))
    with pytest.raises(GrowError, match=r"state of Foreign cannot be carried over\n  where: seen of stem.0.weight"):
        grown_optimiser(odd, module, rewriting, grown)


def test_groups_keep_their_options_and_new_tensors_join_the_nearest(graph: Graph) -> None:
    module = graph.module()
    named = dict(module.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named.items() if n.startswith("stem")], "lr": 0.01},
        {"params": [("head.weight", named["head.weight"])], "weight_decay": 0.3, "mine": "kept"},
    ]
    optimiser = optim.AdamW(groups, 0.1)
    sites = {s.label: s.members[0] for s in (*Deepen().sites(graph), *ResidualBranch().sites(graph))}
    rewriting = patch(graph, *sites.values(), Prune(next(iter(infer_widths(graph))).name, (0,)))
    grown = in_the_manner_of(module, rewriting.after)
    found = grown_optimiser(optimiser, module, rewriting, grown)
    first, second = found.param_groups
    assert (first["lr"], second["lr"], second["weight_decay"], second["mine"]) == (0.01, 0.1, 0.3, "kept")
    new = dict(grown.named_parameters())
    names = {p: n for n, p in new.items()}
    held = [[names[p] for p in group["params"]] for group in found.param_groups]
    assert held == [first["param_names"], second["param_names"]]
    added = sorted(new.keys() - named.keys())
    assert added and sorted(n for g in held for n in g if n in added) == added
    for name in added:
        # The nearest by its path, of as many dimensions: nothing but the stem has vectors in a group.
        near = 0 if name.startswith("stem") or new[name].dim() != 2 else 1
        assert name in held[near], name
    assert not [n for g in held for n in g if n in ("body.weight", "head.bias", "scale")], "they were in no group"
    assert not new["scale"].requires_grad and new["body.weight"].requires_grad


class WarmUp(lr_scheduler.LRScheduler):
    """A rate that rises for three steps, and is what another scheduler says from there on."""

    def __init__(self, optimizer: optim.Optimizer, after: Any) -> None:
        self.after = after
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [base * min(1.0, (self.last_epoch + 1) / 3) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < 3:
            super().step()
        else:
            self.after[-1]["then"].step()


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.3], total_steps=12),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 1 / (t + 1), lambda t: 0.5**t]),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "warm-up": lambda o: WarmUp(o, ("cosine", {"then": lr_scheduler.CosineAnnealingLR(o, 9)})),
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("grown_after", [0, 3])
def test_schedulers_go_on(graph: Graph, kind: str, grown_after: int) -> None:
    """The rates are those of a loop without growth; a scheduler that has not stepped yet sees the steps before it."""

    def rates(grow: bool) -> list[list[float]]:
        module = graph.module()
        parameters = trained(module)
        groups: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.3}]
        optimiser: optim.Optimizer = optim.SGD(groups, 0.1, momentum=0.9)
        scheduler, found = SCHEDULERS[kind](optimiser), []
        for step in range(8):
            if grow and step == grown_after:
                rewriting = split(graph.with_tensors(module.state_dict()))
                grown = in_the_manner_of(module, rewriting.after)
                old, optimiser = optimiser, grown_optimiser(optimiser, module, rewriting, grown)
                for one in check_schedulers(scheduler, old):
                    one.optimizer = optimiser
                module = grown
            backward(module, INPUTS[0])
            optimiser.step()
            scheduler.step(*([1.0] if kind == "plateau" else []))
            found.append([group["lr"] for group in optimiser.param_groups])
        return found

    assert rates(True) == rates(False)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages_go_on(graph: Graph, use_buffers: bool) -> None:
    """Copies hold what their average would be, and what follows averages the network as it is then."""
    module, rewriting = graph.module(), split(graph)
    twin = rewriting.after.module()

    def averaged(net: nn.Module) -> AveragedModel:
        return AveragedModel(net, avg_fn=lambda old, new, count: 0.8 * old + 0.2 * new, use_buffers=use_buffers)

    one, other = averaged(module), averaged(twin)
    for scale in (0.9, 1.2, 0.7):
        for net, average in ((module, one), (twin, other)):
            kept = {n: t.clone() for n, t in net.state_dict().items()}
            with torch.no_grad():
                for tensor in net.state_dict().values():
                    if tensor.is_floating_point():
                        tensor *= scale
            average.update_parameters(net)
            net.load_state_dict(kept)
    grown = in_the_manner_of(module, rewriting.after)
    grown_average(one, module, rewriting, grown).put()
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-12)
    for net, average in ((grown, one), (twin, other)):
        average.update_parameters(net)
        assert average(INPUTS[0]).shape == (4, 2)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-12)
    assert int(one.n_averaged) == 4


def test_hooks_and_extra_state_of_an_optimiser_go_on(graph: Graph) -> None:
    module, rewriting = graph.module(), split(graph)
    optimiser, seen = optim.SGD(trained(module), 0.1), list[optim.Optimizer]()
    optimiser.register_step_pre_hook(lambda o, args, kwargs: seen.append(o))
    grown = in_the_manner_of(module, rewriting.after)
    found = grown_optimiser(optimiser, module, rewriting, grown)
    backward(grown, INPUTS[0])
    found.step()
    assert seen == [found]
    found.zero_grad()
    assert all(p.grad is None for p in grown.parameters())
    again = optim.SGD(trained(grown), 0.1)
    again.load_state_dict(found.state_dict())


def test_what_does_not_belong_together_is_refused(graph: Graph) -> None:
    module, other = graph.module(), graph.module()
    optimiser = optim.SGD(trained(module), 0.1)
    with pytest.raises(GrowError, match="7 of the 7 parameters of the optimiser are not the model's"):
        check_optimiser(optimiser, other)
    with pytest.raises(GrowError, match=r"LBFGS cannot go on.*\n  why: .*\n  hint:  apply\(model\) without it"):
        check_optimiser(optim.LBFGS(trained(module)), module)
    with pytest.raises(GrowError, match=r"a dict is no optimiser"):
        check_optimiser({}, module)  # type: ignore[arg-type]
    wrapped = Foreign(trained(module), torch.clone)
    wrapped.base = optimiser  # type: ignore[attr-defined]
    with pytest.raises(GrowError, match=r"holds another optimiser, base\n  hint:  give optimizer.base"):
        check_optimiser(wrapped, module)
    wrapped.base = trained(module)  # type: ignore[attr-defined]
    with pytest.raises(GrowError, match="keeps parameters beside its groups, as base"):
        check_optimiser(wrapped, module)
    optimiser.step = lambda closure=None: None  # type: ignore[method-assign]
    with pytest.raises(GrowError, match="step of the SGD was replaced"):
        check_optimiser(optimiser, module)
    scheduler = lr_scheduler.ExponentialLR(optim.SGD(trained(module), 0.1), 0.9)
    with pytest.raises(GrowError, match="the ExponentialLR is bound to another optimiser"):
        check_schedulers([scheduler], optim.SGD(trained(module), 0.1))
    with pytest.raises(GrowError, match=r"bound to another optimiser\n  hint:  give its optimiser, too"):
        check_schedulers(scheduler, None)
    scheduler.mine = [{"its": scheduler.optimizer}]  # type: ignore[attr-defined]
    with pytest.raises(
        GrowError, match=r"ExponentialLR holds its optimiser elsewhere, too, as mine\n.*\n  hint:  apply"
    ):
        check_schedulers(scheduler, scheduler.optimizer)
    assert check_schedulers([None, scheduler, scheduler], scheduler.optimizer, in_place=True) == [scheduler]
    with pytest.raises(GrowError, match="a int is no scheduler"):
        check_schedulers(3, None)
    with pytest.raises(GrowError, match="holds no average of the model"):
        check_average(module, module)
    narrow = patch(graph, Prune(next(iter(infer_widths(graph))).name, (0,))).after.module()
    with pytest.raises(GrowError, match=r"not that of the model\n  why:   .* differs"):
        check_average(AveragedModel(narrow), module)


class Block(nn.Module):
    """A block with a normalisation, of which copies can be made."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return found


def test_copies_of_blocks_join_the_groups_of_the_blocks_they_are_made_of() -> None:
    """Layers have rates of their own, as in fine-tuning, and what does not decay has groups of its own."""
    model = nn.Sequential(*(Block() for _ in range(4)), nn.Linear(4, 3))
    graph = trace(model, (torch.randn(2, 4),))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in part.parameters() if (p.dim() > 1) is decays], "layer": number, "decays": decays}
        for number, part in enumerate(model)
        for decays in (True, False)
    ]
    optimiser = optim.SGD(groups, 0.1)
    sites = list(DuplicateBlock().sites(graph))
    checked = 0
    for site in sites:
        rewriting = patch(graph, site.members[0])
        grown = in_the_manner_of(model, rewriting.after)
        found = grown_optimiser(optimiser, model, rewriting, grown)
        names = {p: n for n, p in grown.named_parameters()}
        places = {names[p]: group for group in found.param_groups for p in group["params"]}
        added = [n for node in rewriting.added if node.parameter for n in node.parameter.names]
        assert added and places.keys() == set(names.values())
        (block,) = {int(str(b)) for b in re.findall(r"block=\"?(\d+)", rewriting.after.history[-1])}
        for name in added:
            assert places[name]["layer"] == block, name
            assert places[name]["decays"] == (grown.get_parameter(name).dim() > 1)
        checked += 1
    assert checked == 4
