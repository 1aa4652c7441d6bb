from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from archir.growing.birth import Birth
from archir.growing.expansion import widen_uniformly
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.testing import outputs
from frontends.pytorch import trace
from tests.growing.small_run import mlp
from tests.models.captured import graph_of
from tests.models.tokens import GPT


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.cells = nn.LSTM(width, 2 * width, batch_first=True)
        self.head = nn.Linear(2 * width, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.cells(self.embedding(tokens))
        logits: Tensor = self.head(states)
        return logits


def cnn(width: int) -> nn.Module:
    first = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    second = nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(2 * width, 50))


def gpt(width: int) -> nn.Module:
    return GPT(width=width, heads=width // 8)


MODELS: dict[str, tuple[Callable[[int], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(64, 20)),
    "cnn": (cnn, lambda: torch.randn(16, 3, 4, 4)),
    "gpt": (gpt, lambda: torch.randint(50, (16, 16))),
    "lstm": (Recurrent, lambda: torch.randint(50, (16, 8))),
}


def capture(model: nn.Module, inputs: Tensor) -> Graph:
    return trace(model.eval(), (inputs[:2],))


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_network_is_as_pytorch_makes_it(name: str) -> None:
    make, sample = MODELS[name]
    squares: dict[str, list[Tensor]] = {"fresh": [], "pytorch": []}
    small, large = (capture(make(width), sample()) for width in (24, 48))
    for seed in range(16):
        torch.manual_seed(seed)
        inputs = sample()
        narrow, made = (g.with_tensors(make(w).state_dict()) for g, w in ((small, 24), (large, 48)))
        wide = widen_uniformly(narrow, Budget(parameters=made.parameter_count), seed=seed).graph
        for node in made.parameters:
            (tensor_name, *_), tensor = node.names, made.tensors[node.id]
            found = wide.tensor(tensor_name)
            assert found.shape == tensor.shape
            if tensor.dim() > 1:
                error = 4 * (2 * narrow.tensor(tensor_name).numel()) ** -0.5  # of a standard deviation, four of them
                torch.testing.assert_close(found.std(), tensor.std(), rtol=error, atol=0)
        with torch.no_grad():
            for how, graph in (("fresh", wide), ("pytorch", made)):
                squares[how].append(torch.stack(outputs(graph, [inputs])).square().mean())
    scales = {how: torch.stack(found).mean().sqrt() for how, found in squares.items()}
    torch.testing.assert_close(scales["fresh"], scales["pytorch"], rtol=0.1, atol=0)


def test_a_fresh_network_keeps_what_is_no_noise() -> None:
    torch.manual_seed(0)
    model = Recurrent(8)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        model.embedding.weight[0] = 0  # padding
        weights["cells.weight_hh_l0"].fill_(0.25)
        for name in ("cells.bias_ih_l0", "cells.bias_hh_l0"):
            weights[name].zero_()[16:32] = 1  # the forget gate
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(50))
    narrow = capture(model, torch.randint(50, (4, 8)))
    wide = widen_uniformly(narrow, Budget(parameters=4 * narrow.parameter_count)).graph
    size = wide.tensor("cells.weight_hh_l0").shape[1]
    assert size > 24
    assert not wide.tensor("embedding.weight")[0].any() and wide.tensor("embedding.weight")[1:].all()
    torch.testing.assert_close(wide.tensor("cells.weight_hh_l0"), torch.full((4 * size, size), 0.25 * 16 / size))
    assert torch.equal(wide.tensor("cells.bias_ih_l0"), torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(size))
    assert not wide.tensor("head.weight").any()
    assert torch.equal(wide.tensor("head.bias"), torch.arange(50.0))


def test_tied_weights_have_no_fan_in() -> None:
    graph = graph_of("gpt_tied")  # units of its embedding cannot be repeated
    wide = widen_uniformly(graph, Budget(parameters=4 * graph.parameter_count)).graph
    growth = wide.tensor("tokens.weight").shape[1] / 32
    assert growth > 1.5
    for name, factor in (("tokens.weight", 1.0), ("qkv.weight", growth), ("mlp.0.weight", growth)):
        ratio = wide.tensor(name).std() / graph.tensor(name).std()
        assert float(ratio) == pytest.approx(factor**-0.5, rel=0.05)


@pytest.mark.parametrize("birth", ["fresh", "split"])
def test_birth_follows_its_seed(birth: Birth, seed_graph: Graph) -> None:
    born = partial(widen_uniformly, seed_graph, Budget(parameters=2000), birth=birth)
    first, again, other = (born(seed=seed).graph.tensor("outer.weight") for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_copies_are_told_apart_by_what_reads_them() -> None:
    torch.manual_seed(0)
    graph = trace(mlp(32).double(), (torch.randn(4, 20).double(),))
    wide = widen_uniformly(graph, Budget(parameters=9 * graph.parameter_count), birth="split").graph
    first, second = (wide.tensor(f"{n}.weight") for n in (0, 2))
    assert torch.equal(first[:32], first[32:64])
    read, was = second[:64], graph.tensor("2.weight")
    whole = torch.stack([read[:, unit::32].sum(1) for unit in range(32)], 1)
    torch.testing.assert_close(whole, was, rtol=0, atol=1e-14)
    copies = first.shape[0] / 32
    assert float(second.std()) == pytest.approx(float(was.std()) * copies**-0.5, rel=0.05)
    module = wide.module()
    module(torch.randn(64, 20).double()).square().sum().backward()
    gradient = module.get_parameter("0.weight").grad
    assert gradient is not None
    alike = torch.cosine_similarity(gradient[:32], gradient[32:64])
    assert float(alike.mean()) < 0.7
