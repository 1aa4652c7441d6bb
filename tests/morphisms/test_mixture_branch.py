"""Mixture branches: what they compute, which MLPs are found, and what they are predicted to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.testing import randomise
from passes.mixture_branch import MixtureBranch
from tests.models.captured import graph_of
from tests.morphisms.checks import emit, predictions
from tests.morphisms.wiring import change, change_in_training, reason, traced, value_after


class Plain(nn.Module):
    """An MLP with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.drop(self.second(self.drop(F.silu(self.first(x)))))
        return found


class Gated(nn.Module):
    """An MLP with a gate, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.second = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.up(x) * F.silu(self.first(x)))
        return found


@pytest.mark.parametrize("net", [Plain, Gated])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_the_experts_are_mixed_for_every_token(net: type[nn.Module], shape: tuple[int, ...]) -> None:
    graph, (x,) = traced(net(), *shape)
    (site,) = MixtureBranch(experts=3, hidden=2).sites(graph)
    after = site.members[0].apply(graph)
    assert change(graph, after, [x]) == 0
    moved = randomise(after)
    calls = [n.op for n in moved.calls]
    last = max(i for i, op in enumerate(calls) if op == "aten.add.Tensor")
    result = max(i for i, n in enumerate(moved.calls) if n.op == "aten.linear.default" and not n.born)
    stored = {n: moved.tensor(f"mixture.{n}") for n in ("linear1.weight", "linear1.bias", "linear2.weight")}
    share = F.softmax(F.linear(x, moved.tensor("mixture.router.weight"), moved.tensor("mixture.router.bias")), -1)
    expected = value_after(moved, [x], result)
    for expert in range(3):
        units = slice(2 * expert, 2 * expert + 2)
        hidden = F.silu(F.linear(x, stored["linear1.weight"][units], stored["linear1.bias"][units]))
        expected = expected + share[..., expert, None] * F.linear(hidden, stored["linear2.weight"][:, units])
    torch.testing.assert_close(value_after(moved, [x], last), expected, rtol=1e-12, atol=1e-12)


def test_the_experts_together_have_as_many_units_as_the_mlp() -> None:
    graph, _ = traced(Plain(), 6)
    (site,) = MixtureBranch().sites(graph)
    for experts, units in ((4, 8), (16, 16)):
        after = MixtureBranch(site.label, experts).apply(graph)
        assert after.tensor("mixture.linear1.weight").shape == (units, 6)


def test_experts_and_their_units_are_free_widths() -> None:
    graph, _ = traced(Plain(), 4, 6)
    (site,) = MixtureBranch(experts=3, hidden=2).sites(graph)
    before, after = infer_widths(graph), infer_widths(site.members[0].apply(graph))
    assert sorted(w.size for w in after) == sorted([*(w.size for w in before), 2, 3])


class Unlike(nn.Module):
    """What is no MLP: no activation, a learned one, a convolution or an input before it, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.learned, self.conv = nn.Linear(4, 4), nn.PReLU(), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        twice = self.layer(self.layer(x))
        learned = self.layer(self.learned(self.layer(x)))
        conv = self.layer(torch.tanh(self.conv(x)))
        given = self.layer(torch.tanh(x))
        product = self.layer(x * x)
        return twice.sum(), learned.sum(), conv.sum(), given.sum(), product.sum()


def test_reasons_it_does_not_apply() -> None:
    graph, _ = traced(Unlike(), 4, 4)
    sums = [n for n in graph.calls if n.op == "aten.sum.default"]
    number = {n.id: f"%{i}" for i, n in enumerate(graph.calls)}
    twice, learned, conv, given, product = (number[n.values[0].node] for n in sums)
    assert "number of experts" in reason(MixtureBranch(conv, experts=0), graph)
    assert "number of experts" in reason(MixtureBranch(conv, hidden=-1), graph)
    assert "no linear layer makes it" in reason(MixtureBranch("x"), graph)
    assert "no linear layer makes it" in reason(MixtureBranch(number[sums[0].id]), graph)
    for value in (twice, learned, product):
        assert "no activation without parameters" in reason(MixtureBranch(value), graph)
    for value in (conv, given):
        assert "no linear layer comes before" in reason(MixtureBranch(value), graph)
    assert not list(MixtureBranch().sites(graph))
    with pytest.raises(PassError, match="no linear layer makes it"):
        MixtureBranch("x").apply(graph)


@pytest.mark.parametrize(("name", "count"), [("gpt", 1), ("vit", 1), ("encoder", 2), ("mlp", 1), ("resnet", 0)])
def test_mlps_are_found(name: str, count: int) -> None:
    assert len(list(MixtureBranch().sites(graph_of(name)))) == count


@pytest.mark.parametrize("name", ["vit", "mlp"])
def test_the_function_is_kept_in_training(name: str) -> None:
    assert change_in_training(MixtureBranch(), name) < 1e-12


def test_it_is_emitted_as_a_module(tmp_path: Path) -> None:
    source = emit(MixtureBranch("%22").apply(graph_of("gpt")), tmp_path)
    assert "self.mixture = MixtureBranch()" in source
    assert "self.router = nn.Linear(32, 4)" in source
    (site,) = MixtureBranch().sites(graph_of("vit"))
    assert "self.linear2 = nn.Linear(64, 32, bias=False)" in emit(site.members[0].apply(graph_of("vit")), tmp_path)


def test_predictions_agree_with_the_truth() -> None:
    found = predictions(MixtureBranch())
    predicted, true = zip(*found, strict=True)
    assert predicted == pytest.approx(true, rel=0.25, abs=1e-4)
