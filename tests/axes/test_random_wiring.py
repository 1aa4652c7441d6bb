"""Random nets of plain torch, and each step of them, against an oracle that knows nothing of axes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.rewrite.miss import Miss
from archir.testing import check_widths, outputs, without
from frontends.pytorch import trace
from passes.merge import Merge
from passes.prune import Prune
from tests.axes.wiring import OFFSET, STEPS, Wired, example, random_net, wired
from tests.axes.wiring_oracle import blanked, noisy, problems_of

NEAR = 1e-9
STATIC = frozenset({"kron", "take_along"})
"""Steps that `torch.export` captures for one batch size only."""


def check(net: Wired) -> None:
    inexact = {"norm", "reduced", *(("matched",) if OFFSET & {*net.chosen} else ())}
    static = bool(STATIC & {*net.chosen})
    assert problems_of(net, example(1), inexact=inexact, static_batch=static) == [], net.chosen


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step_between_two_layers(name: str) -> None:
    check(wired(["linear", name, "linear"], seed=1))


@pytest.mark.parametrize("seed", range(6))
def test_random_nets(seed: int) -> None:
    check(random_net(seed, steps=4))


class SwappedHeads(nn.Module):
    """Attention with two heads on units in another order, which a constant or a buffer says."""

    order: Tensor

    def __init__(self, *, constant: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 12), nn.Linear(4, 3)
        self.register_buffer("order", torch.tensor([1, 0, 3, 2]))
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        picked = (t[..., [1, 0, 3, 2]] if self.constant else t[..., self.order] for t in self.qkv(x).chunk(3, -1))
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in picked)
        found: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


@pytest.mark.parametrize("constant", [True, False])
def test_units_in_the_order_of_a_stored_index(constant: bool) -> None:
    x = torch.randn(2, 6, 5)
    graph = trace(SwappedHeads(constant=constant), (x,))
    assert [p for v in check_widths(graph, (x,)) for p in v.problems] == []
    widths = infer_widths(graph)
    # The heads, and the values of a head, are in the columns of the last weight; constants are not shared, so that the
    # queries and keys are in theirs alone.
    assert {w.size for w in widths} == {2} and all(any(p.parameter == "out.weight" for p in w.places) for w in widths)
    reasons = [w.reason for w in widths.frozen if w.size == 2]
    assert [r.partition(",")[0] for r in reasons] == ["it stands in index tensors only"] * constant


class Features(nn.Module):
    """Products of the features of all pairs of tokens, which are not zero where their weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(F.elu(self.query(x)).add(1) @ F.elu(self.key(x)).add(1).mT)
        return made


class Mixed(nn.Module):
    """Features summed up by an einsum that has a weight, but none for them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(5, 4), nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(torch.einsum("bti,o->bto", self.layer(x).sigmoid(), self.weight))
        return made


class Temperature(nn.Module):
    """Units divided by a number of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(5, 4), nn.Linear(4, 3)
        self.temperature = nn.Parameter(1 + torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.layer(x).relu() / self.temperature)
        return made


@pytest.mark.parametrize("kind", [Features, Mixed, Temperature])
def test_a_removed_unit_is_zero_where_it_is_summed_over(kind: type[nn.Module]) -> None:
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    model = noisy(kind())
    graph = trace(model, (x,))
    assert [p for v in check_widths(graph, (x,)) for p in v.problems] == []
    widths = infer_widths(graph)
    width = next(w for w in widths if w.size == 4)
    pruned = Prune(width.name, (1,)).apply(graph)
    assert torch.allclose(outputs(pruned, [x])[0], without(widths, width, [1], [x])[0], atol=NEAR)
    # Zeros in its places alone are something else, which a width with these roles does not claim to be the same.
    assert not torch.allclose(outputs(pruned, [x])[0], blanked(model.requires_grad_(False), width, 1)(x), atol=1e-4)
    assert kind is Temperature or "matched" in width.roles


def test_a_layer_whose_weight_is_computed_is_matched() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.weight, self.bias = nn.Conv1d(5, 4, 1), nn.Parameter(torch.randn(3, 4, 1)), torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(self.layer(x).sigmoid(), self.weight.sigmoid())

    graph = trace(Computed(), (torch.randn(2, 5, 3),))
    (width,) = infer_widths(graph)
    assert width.roles == {"produced", "matched"}


def test_units_that_an_index_picks_have_no_mean() -> None:
    model = wired(["index", "shift", "linear"], seed=3)
    graph = trace(model, (example(),))
    width = next(w for w in infer_widths(graph) if {"steps.0.index", "steps.1.v"} <= {p.parameter for p in w.places})
    merge = Merge(width.name, (0, 1))
    found = merge.match(graph)
    assert isinstance(found, Miss) and "index tensor" in found.reason
    assert width.name not in {site.label for site in Merge().sites(graph)}
