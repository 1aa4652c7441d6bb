"""Control flow on the batch size: the graph is right where it runs, and refuses every other size."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from archir.errors import CaptureError, GraphError
from archir.ir.graph import Graph
from frontends.pytorch import trace

SIZES = (1, 2, 3, 4, 7, 8, 99, 100, 101, 200)
Choice = Callable[[int], bool]


class Deciding(nn.Module):
    """Uses a layer or none, by the number of rows."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 5)
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if self.choice(x.shape[0]) else 2 * y


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
