"""Which modules need their parameters only while they run, and no other module needs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archir.ir.lowering import self_contained
from frontends.pytorch import trace


class Branching(nn.Module):
    """Two blocks of which one shares a layer with the outside, and a table that is read where it does not stand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.alone = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.sharing = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 4)
        self.head.weight = self.sharing[0].weight  # type: ignore[assignment]
        self.numbered = nn.ModuleList([nn.Linear(4, 4)])
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = self.sharing(self.alone(x)) + self.shift
        found: Tensor = (self.numbered[0](self.head(x)) @ self.table.weight.T).relu()
        return found


def test_what_is_shared_or_read_elsewhere_is_not_self_contained() -> None:
    graph = trace(Branching(), (torch.zeros(2, 3, dtype=torch.long),))
    found, modules = self_contained(graph), dict(graph.module().named_modules())
    assert found <= modules.keys()
    holding = {path for path in found if any(True for _ in modules[path].parameters())}
    # The table is called, and its weight is read by the outermost module as well.
    assert holding == {"", "alone", "alone.0", "alone.2", "alone.2.0", "numbered", "numbered.0"}


def test_a_layer_that_stands_in_two_places_is_of_what_holds_both() -> None:
    twice = nn.Linear(3, 3)
    inner = nn.Sequential(twice, nn.ReLU(), twice)
    found = self_contained(trace(nn.Sequential(inner, nn.Linear(3, 3)), (torch.ones(2, 3),)))
    assert {"", "0", "1"} <= found and not {"0.0", "0.2"} & found
