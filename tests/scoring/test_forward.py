"""Forward mode against reverse mode on every edge of every graph of the zoo, and on operators that lack one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archir.errors import ScoreError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.types import is_float
from archir.rewrite.perturbation import Edge
from archir.scoring.downstream import Downstream
from archir.scoring.forward import Linearisation, Tangents
from archir.scoring.program import Evaluation, Program
from archir.testing import leaves_of, randomise
from frontends.pytorch import trace
from tests.models.captured import graph_of
from tests.models.vision import Resampled
from tests.models.zoo import ZOO


def every_edge(graph: Graph) -> list[Edge]:
    """Return every result of a call that is a real tensor, and every use of one by a call."""
    values = [Value(n.id, i) for n in graph.calls for i, t in enumerate(n.results) if is_float(t)]
    uses = [use for value in values for use in graph.uses(value) if graph.node(use.node).is_call]
    return [*values, *uses]


def real(outputs: tuple[Any, ...]) -> list[int]:
    return [i for i, o in enumerate(outputs) if isinstance(o, Tensor) and o.is_floating_point()]


def largest_difference(graph: Graph, inputs: dict[Value, Any]) -> tuple[float, dict[str, str]]:
    """Return the largest relative difference of `w·(J v)` in the two modes over all edges, and the methods used."""
    edges = every_edge(graph)
    downstream = Downstream(graph, edges)
    linear = Linearisation(downstream, Program(graph, keep=downstream.needs)(inputs).values)
    reverse: Evaluation = Program(graph, edges)(inputs)
    chosen = real(reverse.outputs)
    weights = {i: torch.randn_like(reverse.outputs[i]) for i in chosen}
    moved = [i for i in chosen if reverse.outputs[i].requires_grad]
    gradients = torch.autograd.grad(
        [reverse.outputs[i] for i in moved],
        list(reverse.taps.values()),
        [weights[i] for i in moved],
        materialize_grads=True,
    )
    worst = 0.0
    for (edge, tap), gradient in zip(reverse.taps.items(), gradients, strict=True):
        tangent = torch.randn_like(tap)
        pushed = linear({edge: Tangents(tangent[None])})
        products = [(weights[i] * p[0]).sum() for i in chosen if (p := pushed[i]) is not None]
        forward = float(torch.stack(products).sum()) if products else 0.0
        backward = float((gradient * tangent).sum())
        size = abs(forward) + abs(backward)
        worst = max(worst, abs(forward - backward) / size if size > 1e-9 else 0.0)
    return worst, linear.methods


@pytest.mark.parametrize("name", [n for n in ZOO if n != "nested"])
def test_both_modes_agree_on_every_edge(name: str) -> None:
    example = ZOO[name]
    args, kwargs = example.inputs(3), example.kwargs(3)
    graph = randomise(graph_of(name).to(torch.float64))
    inputs = Program(graph).bind(tuple(leaves_of(args, kwargs)))
    worst, _ = largest_difference(graph, inputs)
    assert worst < 1e-9


def test_attention_runs_under_the_math_backend_and_says_so() -> None:
    example = ZOO["gpt"]
    graph = randomise(graph_of("gpt").to(torch.float64))
    _, methods = largest_difference(graph, Program(graph).bind(example.inputs(2)))
    assert methods["aten.scaled_dot_product_attention.default"] == "jvp (math attention)"
    assert methods["aten.layer_norm.default"] == "jvp"


def test_an_operator_without_forward_mode_takes_two_reverse_passes() -> None:
    x = torch.randn(3, 2, 6, 6)
    graph = trace(Resampled(), (x,)).to(torch.float64)
    worst, methods = largest_difference(graph, Program(graph).bind(x.double()))
    assert worst < 1e-9
    assert set(methods.values()) == {"two reverse passes"}


class Distances(nn.Module):
    """Distances between points, which can be differentiated once, in reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.points = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.first(x), self.points, p=3.0)


def test_an_operator_with_neither_is_named() -> None:
    x = torch.randn(6, 4)
    graph = trace(Distances(), (x,)).to(torch.float64)
    with pytest.raises(ScoreError, match="neither in forward nor twice in reverse") as caught:
        largest_difference(graph, Program(graph).bind(x.double()))
    assert "refine=0" in str(caught.value)


def test_values_not_downstream_do_not_move() -> None:
    example = ZOO["two_heads"]
    graph = graph_of("two_heads").to(torch.float64)
    inputs = Program(graph).bind(tuple(t.double() for t in example.inputs(3)))
    (classes, _) = [v for _, v in graph.output.operands()]
    downstream = Downstream(graph, [classes])
    values = Program(graph, keep=downstream.needs | {classes})(inputs).values
    moved = Linearisation(downstream, values)({classes: Tangents(torch.ones_like(values[classes])[None])})
    assert moved[0] is not None and moved[1] is None
    assert torch.equal(moved[0][0], torch.ones_like(values[classes]))
