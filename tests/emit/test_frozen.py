"""A tensor that is not trained is frozen alone, in the file as in the model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from archir.emit.layouts import LAYOUTS, draft
from frontends.pytorch import trace
from tests.emit.loading import load_draft


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(3))
        self.parts = nn.ModuleDict({"a b": nn.Linear(6, 6), "gru": nn.GRU(6, 6, batch_first=True)})
        self.head = nn.Linear(6, 6)
        self.head.weight = cast(nn.Parameter, self.parts["a b"].weight)
        self.scales = nn.ParameterList(torch.randn(6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x, _ = self.parts["gru"](self.parts["a b"](x * self.scales[0] * self.scales[1]))
        return self.head(x)  # type: ignore[no-any-return]


NAMES = [n for n, _ in Nested().named_parameters()]


def trained(module: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    graph = trace(Nested().eval(), torch.randn(3, 4, 6))
    for layout, name in itertools.product(LAYOUTS, NAMES):
        node = graph.by_name[name]
        with graph.edit(by="test") as edit:
            assert node.parameter is not None
            edit.update(node.id, parameter=type(node.parameter)(node.parameter.names, trainable=False))
        frozen = {n for n, grad in trained(load_draft(draft(edit.graph, layout), tmp_path)).items() if not grad}
        assert frozen == set(node.parameter.names)


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 3, padding=1)])
def test_a_layer_alone_and_in_a_chain(layer: nn.Module, frozen: tuple[str, ...], tmp_path: Path) -> None:
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(layer, nn.ReLU()))
    text = draft(trace(model, torch.randn(3, 4, 6)), "modules").text
    whole = ".requires_grad_(False)"
    assert text.count(whole) == 1
    assert (f"{'_'.join(frozen)}{whole}" in text) == (len(frozen) == 1)
    net = load_draft(draft(trace(model, torch.randn(3, 4, 6)), "modules"), tmp_path)
    assert trained(net) == trained(model)


def test_a_layer_called_in_the_outermost_module(tmp_path: Path) -> None:
    layer = nn.Linear(6, 6)
    layer.bias.requires_grad_(False)
    net = load_draft(draft(trace(layer, torch.randn(3, 6)), "modules"), tmp_path)
    assert trained(net) == {"weight": True, "bias": False}
