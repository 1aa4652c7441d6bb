"""Pruning with compensation: exact where a unit follows from others, better than plain pruning elsewhere."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archir
from archir.axes.infer import infer_widths
from archir.errors import ParseError, PassError, ScoreError
from archir.ir.graph import Graph
from archir.rewrite.pipeline import apply_together
from archir.scoring.compensate import compensated
from archir.testing import outputs, randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from tests.models.captured import graph_of
from tests.models.zoo import ZOO


class Consumers(nn.Module):
    """Units that are read by convolutions of every kind, and by a linear layer after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.plain = nn.Conv2d(8, 3, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(8, 4, 3, groups=2)
        self.transposed = nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.both = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.linear = nn.Linear(8 * 25, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.stem(x))
        return self.plain(x), self.transposed(x), self.grouped(x), self.both(x), self.linear(x.flatten(1))


def _difference(graph: Graph, other: Graph, x: Tensor) -> float:
    pairs = zip(outputs(graph, [x]), outputs(other, [x]), strict=True)
    return sum(float((a - b).square().mean()) for a, b in pairs)


def _batches(*shape: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, *shape, generator=generator, dtype=torch.float64), torch.zeros(16, dtype=torch.long))
        for _ in range(3)
    ]


def test_a_unit_that_follows_from_the_others_is_not_missed() -> None:
    """Channels 1 and 5 are multiples of 0 and 4, in both groups of four; they are unit 1 of the width."""
    torch.manual_seed(0)
    net = Consumers().double()
    with torch.no_grad():
        for parameter in net.stem.parameters():
            parameter[1], parameter[5] = 3 * parameter[0], 0.5 * parameter[4]
    batches = _batches(3, 5, 5)
    graph = trace(net, (batches[0][0],))
    (width,) = infer_widths(graph)
    prune = Prune(width.name, (1,))
    after = compensated(graph, batches, [prune], ridge=1e-12)
    assert _difference(graph, after, batches[0][0]) < 1e-12
    assert _difference(graph, prune.apply(graph), batches[0][0]) > 1e-3
    assert str(after) == str(prune.apply(graph))


@pytest.mark.parametrize("name", ["vgg", "resnet20", "mobilenet", "mlp", "encoder"])
def test_the_outputs_stay_closer_than_without(name: str) -> None:
    example = ZOO[name]
    torch.manual_seed(0)
    graph = randomise(graph_of(name).to(torch.float64))
    batches = _batches(*example.inputs()[0].shape[1:])
    dice = random.Random(0)
    better = total = 0
    for width in list(infer_widths(graph))[::2]:
        prunes = [Prune(width.name, (unit,)) for unit in dice.sample(range(width.size), max(1, width.size // 4))]
        plain = apply_together(graph, [(p, None) for p in prunes])
        after = compensated(graph, batches, prunes)
        assert str(after) == str(plain)
        better += _difference(graph, after, batches[0][0]) < _difference(graph, plain, batches[0][0])
        total += 1
    assert better >= 0.8 * total


def test_several_widths_that_meet_in_one_weight_go_together() -> None:
    graph = graph_of("dilated_pyramid").to(torch.float64)
    batches = _batches(3, 16, 16)
    specs = [f"prune{{width={w.name}, units=[0, 3]}}" for w in infer_widths(graph)]
    after = archir.prune_with_compensation(graph, batches, "; ".join(specs))
    plain = apply_together(graph, [(Prune(w.name, (0, 3)), None) for w in infer_widths(graph)])
    assert str(after) == str(plain)
    assert _difference(graph, after, batches[0][0]) < _difference(graph, plain, batches[0][0])


class Kept(nn.Module):
    """A weight that is used in two ways, and a width that is summed over between activations alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.tied = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        scores: Tensor = self.tied(h) @ self.tied.weight
        return scores.sum(-1)


def test_weights_that_are_used_for_something_else_stay() -> None:
    torch.manual_seed(0)
    graph = trace(Kept().double(), (_batches(4)[0][0],))
    for width in infer_widths(graph):
        plain, after = Prune(width.name, (1,)).apply(graph), compensated(graph, _batches(4), [Prune(width.name, (1,))])
        assert all(torch.equal(after.tensors[i], t) for i, t in plain.tensors.items())


def test_what_cannot_be_compensated_is_said() -> None:
    torch.manual_seed(0)
    graph = graph_of("mlp")
    with pytest.raises(PassError, match="more than remove units"):
        compensated(graph, [], [Split("w0", (1,))])
    with pytest.raises(ScoreError, match="no batches"):
        archir.prune_with_compensation(graph, [], Prune("w0", (1,)))
    with pytest.raises(ParseError, match="no pass 'split'"):
        archir.prune_with_compensation(graph, [], "split{width=w0}")
    with pytest.raises(PassError, match="no width"):
        archir.prune_with_compensation(graph, [], [Prune("w99", (1,))])


def test_units_that_are_dead_give_nothing() -> None:
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double(), (_batches(4)[0][0],))
    graph = graph.with_tensors({"0.bias": torch.full((6,), -100.0)})
    after = compensated(graph, _batches(4), [Prune("w0", (1,))])
    assert bool(torch.isfinite(after.tensor("2.weight")).all())
