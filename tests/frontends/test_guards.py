"""Control flow on the batch size: the graph is right where it runs, and refuses every other size."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from archir.errors import CaptureError, GraphError
from archir.ir.graph import Graph
from archir.ir.guards import parse_guard
from frontends.pytorch import trace
from tests.models.deciding import SIZES, Choice, Deciding


def _guards(graph: Graph) -> str:
    return ", ".join(map(str, graph.signature.guards))


@pytest.mark.parametrize(
    ("choice", "batch", "guards"),
    [
        (lambda n: n > 2, 8, "B >= 3"),
        (lambda n: n > 2, 2, "B <= 2"),
        (lambda n: n > 2, 200, "B >= 3"),
        (lambda n: n % 2 == 0, 8, "B % 2 == 0"),
        (lambda n: n % 2 == 0, 2, "B % 2 == 0"),
        (lambda n: n % 2 == 0, 7, "B % 2 != 0"),
        (lambda n: n > 100, 8, "B <= 100"),
        (lambda n: n > 100, 2, "B <= 100"),
        (lambda n: n > 100, 200, "B >= 101"),
        (lambda n: n == 1, 8, "B >= 2"),
        (lambda n: n != 7, 8, "B != 7"),
        (lambda n: n * n > 50, 8, "B**2 > 50"),
        (lambda n: n // 3 % 2 == 0, 8, "Mod(floor(B/3), 2) == 0"),
        (lambda n: True, 8, ""),
    ],
)
def test_the_branch_of_the_example_is_guarded(choice: Choice, batch: int, guards: str) -> None:
    model = Deciding(choice).eval()
    graph = trace(model, torch.randn(batch, 5))
    assert _guards(graph) == guards
    module, taken = graph.module().eval(), choice(batch)
    for size in SIZES:
        x = torch.randn(size, 5)
        if choice(size) == taken:
            torch.testing.assert_close(module(x), model(x))
        else:
            with pytest.raises(GraphError, match=re.escape(f"does not hold for B = {size}")):
                module(x)


def test_a_captured_module_keeps_its_guards_when_it_is_captured_again() -> None:
    graph = trace(Deciding(lambda n: n % 2 == 0), torch.randn(8, 5))
    assert _guards(trace(graph.module(), torch.randn(4, 5))) == "B % 2 == 0"


def test_a_batch_of_one_size_is_refused_with_the_line_that_fixed_it() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[0] == 7 else 2 * x

    with pytest.raises(CaptureError, match="One works for one batch size only") as caught:
        trace(One(), torch.randn(7, 5))
    assert "if x.shape[0] == 7" in caught.value.where
    graph = trace(One(), torch.randn(7, 5), static_batch=True)
    with pytest.raises(GraphError, match="axis 0 of x has the size 8 instead of 7"):
        graph.module()(torch.randn(8, 5))


def test_rows_that_are_reshaped_together_have_to_be_enough() -> None:
    class Paired(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 10)

    graph = trace(Paired(), torch.randn(8, 5))
    assert _guards(graph) == "B % 2 == 0"
    with pytest.raises(GraphError, match="B % 2 == 0 does not hold for B = 3"):
        graph.module()(torch.randn(3, 5))


def test_what_has_another_shape_for_a_batch_of_one_is_guarded() -> None:
    class Squeezed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x[:, None].squeeze()
            return y.reshape(y.shape[0], -1)

    assert _guards(trace(Squeezed(), torch.randn(8, 5))) == "B >= 2"


def test_inputs_whose_batches_were_equal_have_to_be() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    graph = trace(Added(), (torch.randn(8, 5), torch.randn(8, 5)))
    with pytest.raises(GraphError, match="axis 0 of y has the size 1 instead of B, which is 4"):
        graph.module()(torch.randn(4, 5), torch.randn(1, 5))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(5, 5), nn.ReLU()],
        [nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Unflatten(1, (1, 5)), nn.TransformerEncoderLayer(5, 1, 8, batch_first=True)],
    ],
)
def test_what_torch_alone_asks_of_a_batch_of_one_is_no_guard(layers: list[nn.Module]) -> None:
    model = nn.Sequential(*layers).eval()
    for batch in (1, 2, 4):
        graph = trace(model, torch.randn(batch, 5))
        assert graph.signature.guards == ()
        for size in (1, 2, 9):
            x = torch.randn(size, 5)
            torch.testing.assert_close(graph.module().eval()(x), model(x))


@pytest.mark.parametrize("batch", [4, 8])
def test_a_guard_against_one_that_decides_is_kept(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that asks is made to look like one of torch's; what is computed tells that it matters."""
    monkeypatch.setattr("frontends.guards.TORCH", "")
    assert _guards(trace(Deciding(lambda n: n == 1), torch.randn(batch, 5))) == "B >= 2"

    class Same(Deciding):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if x.shape[0] == 1 else y + 0

    assert _guards(trace(Same(bool), torch.randn(batch, 5))) == ""


def test_a_minimum_with_the_batch_size_is_no_bound_by_itself() -> None:
    class Spread(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            group = min(4, x.shape[0])
            y = x.reshape(group, -1, 5).std(0, unbiased=False).mean()
            return torch.cat([x, y.expand(x.shape[0], 1)], 1)

    graph, model = trace(Spread(), torch.randn(8, 5)), Spread()
    for size in (2, 3, 4, 12):
        x = torch.randn(size, 5)
        torch.testing.assert_close(graph.module()(x), model(x))
    with pytest.raises(GraphError, match="does not hold for B = 6"):
        graph.module()(torch.randn(6, 5))


def test_a_gathered_batch_may_be_the_smaller_one() -> None:
    class Gathered(nn.Module):
        def forward(self, x: Tensor, i: Tensor) -> Tensor:
            return x.gather(1, i)

    graph = trace(Gathered(), (torch.randn(4, 5), torch.zeros(4, 3, dtype=torch.int64)))
    assert _guards(graph) == "B1 <= B"
    assert graph.module()(torch.randn(3, 5), torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3)
    with pytest.raises(GraphError, match="B1 <= B does not hold"):
        graph.module()(torch.randn(3, 5), torch.zeros(4, 3, dtype=torch.int64))


def test_guards_that_follow_from_sizes_being_sizes_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1)).eval()
    axes = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3)}
    graph = trace(model, torch.randn(2, 3, 16, 16), dynamic_shapes=({**axes},))
    assert _guards(graph) == ""
    x = torch.randn(1, 3, 9, 20)
    torch.testing.assert_close(graph.module().eval()(x), model(x))


def test_a_graph_that_refuses_its_own_example_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontends.pytorch.excluded_by", lambda guards, sizes: parse_guard("B >= 9"))
    with pytest.raises(CaptureError, match="cannot be captured with these axes dynamic") as caught:
        trace(nn.Linear(5, 5), torch.randn(8, 5), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert caught.value.why == "its graph is right for B >= 9 only, and the example is not"


def test_batches_that_are_reshaped_into_one_another_are_one_size() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask.reshape(-1).reshape(x.shape[0], -1)

    graph = trace(Masked(), (torch.randn(4, 5), torch.ones(4, 5)))
    assert [str(n.results[0]) for n in graph.inputs] == ["f32[B, 5]", "f32[B, 5]"] and _guards(graph) == ""
