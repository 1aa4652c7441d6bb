"""Skip connections: strides, the two values, and what they are predicted to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from archir.errors import PassError
from archir.rewrite.miss import Miss
from archir.rewrite.pipeline import apply_together
from archir.testing import randomise
from frontends.pytorch import trace
from passes.skip_connection import SkipConnection
from tests.models.captured import graph_of
from tests.morphisms.checks import emit, predictions, sizes
from tests.morphisms.wiring import Images, change, change_in_training, reason, traced, value_after


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_an_image_is_read_at_the_stride_of_the_target(spatial: int, size: int) -> None:
    graph, inputs = traced(Images(spatial), 2, *[size, 6, 4][:spatial])
    after = SkipConnection("%1", "%3").apply(graph)
    assert change(graph, after, inputs) == 0
    assert sizes(after) == sizes(graph)
    moved = randomise(after)
    source, target, found = (value_after(moved, inputs, n) for n in (1, 3, 5))
    kernel = moved.tensor("skip.proj.weight")
    for axis in range(2, 2 + spatial):
        source = source.index_select(axis, torch.arange(0, source.shape[axis], 2))
    expected = target + torch.einsum("oi,bi...->bo...", kernel.flatten(1), source)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_tokens_pass_a_linear_layer() -> None:
    graph, inputs = traced(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), 7, 4)
    after = randomise(SkipConnection("%1", "%3").apply(graph))
    name = next(n for n in after.by_name if n.endswith("proj.weight"))
    source, target, found = (value_after(after, inputs, n) for n in (1, 3, 5))
    torch.testing.assert_close(found, target + F.linear(source, after.tensor(name)), rtol=1e-12, atol=1e-12)


class Shapes(nn.Module):
    """Values of many shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(2, 4, 3, padding=1)
        self.smaller = nn.Conv2d(4, 4, 3, stride=3)
        self.odd = nn.Conv2d(4, 4, 4)
        self.line = nn.Conv1d(4, 4, 1)
        self.table = nn.Linear(4, 4)
        self.tokens = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.image(x))
        smaller, odd = torch.relu(self.smaller(x)), torch.relu(self.odd(x))
        line = torch.relu(self.line(x.flatten(2)))
        tokens = torch.relu(self.tokens(line.transpose(1, 2)))
        table = torch.relu(self.table(tokens.mean(1)))
        return smaller.sum(), odd.sum(), torch.relu(self.table(table)).sum()


def test_reasons_it_does_not_apply() -> None:
    graph, _ = traced(Shapes(), 2, 9, 9)
    made = [n for n in graph.calls if n.op == "aten.relu.default"]
    numbers = {n.id: f"%{i}" for i, n in enumerate(graph.calls)}
    image, smaller, odd, line, tokens, table, last = (numbers[n.id] for n in made)
    assert not isinstance(SkipConnection(image, smaller).match(graph), Miss)
    assert "made of the target" in reason(SkipConnection(smaller, image), graph)
    assert "made of the target" in reason(SkipConnection(image, image), graph)
    assert "cannot be told" in reason(SkipConnection("x", image), graph)
    assert "no stride takes a size of 9 to 6" in reason(SkipConnection(image, odd), graph)
    assert "no stride takes a size of 3 to 6" in reason(SkipConnection(smaller, odd), graph)
    assert "is an image" in reason(SkipConnection(image, line), graph)
    assert "is an image" in reason(SkipConnection(line, tokens), graph)
    assert not isinstance(SkipConnection(table, last).match(graph), Miss)
    with pytest.raises(PassError, match="no stride"):
        SkipConnection(image, odd).apply(graph)


class Varied(nn.Module):
    """Values of other lengths, other element types, and sizes known at run time only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.single = nn.Linear(4, 4)
        self.image = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        long = torch.relu(self.first(x))
        short = torch.relu(self.second(x[:, :3]))
        single = torch.relu(self.single(x.to(torch.float32)))
        over = torch.relu(self.image(x.reshape(1, 4, -1)))
        other = torch.relu(self.image(over))
        return long.sum(), short.sum(), single.sum(), other.sum()


def test_reasons_that_depend_on_types() -> None:
    net = Varied().double()
    net.single.to(torch.float32)
    graph = trace(net, (torch.ones(3, 5, 4, dtype=torch.float64),))
    numbers = [f"%{i}" for i, n in enumerate(graph.calls) if n.op == "aten.relu.default"]
    long, short, single, over, other = numbers
    assert "the number of tokens" in reason(SkipConnection(long, short), graph)
    assert "element types" in reason(SkipConnection(long, single), graph)
    assert "only at run time" in reason(SkipConnection(over, other), graph)


def test_sites_are_near_each_other_and_more_with_a_longer_reach() -> None:
    graph = graph_of("resnet")
    near = [s.label for s in SkipConnection(reach=1).sites(graph)]
    far = [s.label for s in SkipConnection(reach=9).sites(graph)]
    assert set(near) < set(far)
    assert len({label.split(" to ")[1] for label in near}) == len(near)


def test_two_that_would_make_a_cycle_do_not_go_together() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
            self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.tanh(self.left(x)), torch.tanh(self.right(x))
            return torch.sigmoid(self.down(left)) * torch.sigmoid(self.up(right))

    graph, inputs = traced(Parallel(), 4)
    names = [n.op.split(".")[1] for n in graph.calls]
    left, right, down, up = (f"%{i}" for kind in ("tanh", "sigmoid") for i, n in enumerate(names) if n == kind)
    both = [(SkipConnection(left, up), None), (SkipConnection(right, down), None)]
    assert change(graph, apply_together(graph, both), inputs) == 0
    with pytest.raises(PassError, match="made of the target"):
        apply_together(graph, [(SkipConnection(down, right), None), (SkipConnection(up, left), None)])


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_function_is_kept_in_training(name: str) -> None:
    assert change_in_training(SkipConnection(), name) < 1e-12


def test_it_is_emitted_as_a_module(tmp_path: Path) -> None:
    source = emit(SkipConnection("%6", "%15").apply(graph_of("resnet")), tmp_path)
    assert "self.skip = SkipConnection()" in source
    assert "self.proj = nn.Conv2d(16, 32, 1, stride=2, bias=False)" in source
    source = emit(SkipConnection("%6", "%19").apply(graph_of("gpt")), tmp_path)
    assert "self.proj = nn.Linear(96, 32, bias=False)" in source


def test_predictions_agree_with_the_truth() -> None:
    found = predictions(SkipConnection())
    predicted, true = zip(*found, strict=True)
    assert len(found) >= 3
    assert spearmanr(predicted, true).statistic > 0.9
    assert predicted == pytest.approx(true, rel=0.25, abs=1e-4)
