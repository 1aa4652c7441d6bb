"""The networks of real size are as large as they are said to be, and trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from archir.cost import cost
from frontends.pytorch import trace
from tools.real_networks import GPT2, ViT, resnet18, vgg19


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(resnet18, 11_173_962), (vgg19, 20_035_018), (GPT2, 124_439_808), (ViT, 22_050_664)],
)
def test_they_have_as_many_parameters(make: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (resnet18(4), torch.randn(2, 3, 32, 32)),
        (vgg19(4), torch.randn(2, 3, 32, 32)),
        (GPT2(width=16, blocks=1, heads=2, tokens=11, length=8), torch.randint(11, (2, 8))),
        (ViT(width=16, blocks=1, heads=2, image=32, classes=5), torch.randn(2, 3, 32, 32)),
    ],
    ids=["resnet18", "vgg19", "gpt2", "vit"],
)
def test_they_trace(module: nn.Module, inputs: torch.Tensor) -> None:
    graph = trace(module.eval(), (inputs,))
    assert cost(graph).parameters == sum(p.numel() for p in module.parameters())
    assert torch.allclose(graph.module().eval()(inputs), module(inputs), rtol=1e-4, atol=1e-5)
