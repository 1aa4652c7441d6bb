"""Tangents pushed through the downstream several at once are those pushed one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from archir.api import score
from archir.errors import ScoreError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.perturbation import Perturbation
from archir.scoring import chunks, stream
from archir.scoring.batches import bind_batches
from archir.scoring.chunks import chunk_size, singly
from archir.scoring.downstream import Downstream
from archir.scoring.families import find_families
from archir.scoring.forward import Linearisation, Tangents
from archir.scoring.objective import make_objective
from archir.scoring.program import Program
from archir.scoring.refine import Refinement, refine
from archir.scoring.stream import StreamedObjective, streamed
from archir.testing import evaluate, randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.vision import Resampled
from tests.models.zoo import ZOO


class Case:
    """A model with some candidates of each of its families, on one batch."""

    def __init__(
        self, graph: Graph, inputs: tuple[Tensor, ...], *, batch_statistics: bool = False, streams: bool = True
    ) -> None:
        graph = randomise(graph.to(torch.float64))
        self.objective = make_objective(graph, "mse", batch_statistics=batch_statistics)
        program = self.objective.program
        self.inputs = tuple(t.double() if t.is_floating_point() else t for t in inputs)
        families, _ = find_families(program.graph, (Split(), Prune(), Widen(count=2)))
        outputs = set() if streams else set(program.graph.output.values)
        every: Sequence[Perturbation] = [f.perturbation for f in families]
        self.perturbations = [p for p in every if not p.edges.keys() & outputs]
        values = evaluate(program.graph, self.inputs)
        self.thetas = [p.initial_theta(values, 1) for p in self.perturbations]
        # the members of a family are not side by side, nor the families in order
        self.chosen = [(f, m) for m in range(3) for f, p in reversed([*enumerate(self.perturbations)]) if m < p.members]
        self.targets = torch.randn_like(program(program.bind(self.inputs)).outputs[0])

    def refined(self, chunk: int | None) -> Refinement:
        batches = [(self.inputs, self.targets)]
        return refine(self.objective, self.perturbations, self.thetas, singly(self.chosen), batches, chunk=chunk)


def zoo(name: str, *, batch_statistics: bool = False, streams: bool = True) -> Case:
    """Return a case; without families that change the outputs themselves if streams are left out."""
    torch.manual_seed(0)
    return Case(graph_of(name), ZOO[name].inputs(3), batch_statistics=batch_statistics, streams=streams)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))


def agree(case: Case, chunk: int) -> Refinement:
    """Hold the refinement in chunks to the one without; return it."""
    found, expected = case.refined(chunk), case.refined(1)
    assert close(found.batches[0].pushed, expected.batches[0].pushed)
    assert close(found.first_order, expected.first_order)
    assert close(found.gram, expected.gram)
    return found


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("name", ["vgg", "resnet", "densenet", "swin", "gpt", "grouped_query_attention", "encoder"])
def test_chunks_change_no_number(name: str, chunk: int) -> None:
    found = agree(zoo(name), chunk)
    assert not any("one by one" in method for method in found.methods.values())


def test_recurrent_layers_take_several_tangents() -> None:
    assert agree(zoo("lstm"), 3).methods["aten.lstm.input"] == "jvp"


def test_chunks_run_through_the_statistics_of_a_batch() -> None:
    assert agree(zoo("resnet", batch_statistics=True), 4).methods["aten.batch_norm.default"] == "jvp"


def test_chunks_end_at_the_features_of_a_streamed_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGEST_OUTPUTS", 200)
    case = zoo("gpt", streams=False)
    (tokens,) = case.inputs
    case.targets = tokens.flip(1)
    objective = make_objective(case.objective.graph, "cross_entropy")
    batches = bind_batches(objective.program, [(tokens, case.targets)])
    case.objective = streamed(objective, case.perturbations, batches)
    assert isinstance(case.objective, StreamedObjective)
    agree(case, 5)


class Reached(nn.Module):
    """A long way and a short one to each of two outputs, and tensors that broadcast on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 5)
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        shifted = y.sigmoid() + self.bias.tanh()
        z = self.second(shifted) * y
        return torch.cat([z, y], 1), y.relu()


def test_candidates_that_start_at_different_places_share_the_rest() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    graph = trace(Reached(), (x.float(),)).to(torch.float64)
    edges = [Value(n.id) for n in graph.calls] + [u for n in graph.calls for u in graph.uses(Value(n.id))]
    downstream = Downstream(graph, edges)
    values = Program(graph, keep=downstream.needs)(Program(graph).bind(x)).values
    shapes = [values[e if isinstance(e, Value) else dict(graph.node(e.node).operands())[e]].shape for e in edges]
    starts = [torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]
    linear = Linearisation(downstream, values)
    together = linear({e: Tangents(t, 2 * i) for i, (e, t) in enumerate(zip(edges, starts, strict=True))})
    for i, (edge, start) in enumerate(zip(edges, starts, strict=True)):
        for j, tangent in enumerate(start):
            alone = linear({edge: Tangents(tangent[None])})
            for output, expected in zip(together, alone, strict=True):
                assert output is not None and len(output) == 2 * len(edges)
                wanted = torch.zeros_like(output[0]) if expected is None else expected[0]
                assert close(output[2 * i + j], wanted)


class ChannelsLast(nn.Module):
    """Convolutions with a change of layout between them, which `torch.vmap` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.last(y).flatten(1))


@pytest.mark.parametrize(
    ("model", "op", "method"),
    [(Resampled, "grid_sampler", "two reverse passes"), (ChannelsLast, "contiguous", "called again")],
)
def test_what_refuses_several_tangents_takes_them_one_by_one_and_says_so(
    model: Callable[[], nn.Module], op: str, method: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 6)
    graph = trace(model(), (x,)).to(torch.float64)
    edge = Value(next(n.id for n in graph.calls if n.op == "aten.conv2d.default"))
    downstream = Downstream(graph, [edge])
    values = Program(graph, keep=downstream.needs | {edge})(Program(graph).bind(x.double())).values
    linear = Linearisation(downstream, values)
    tangents = torch.randn(3, *values[edge].shape, dtype=torch.float64)
    alone = torch.cat([found for t in tangents if (found := linear({edge: Tangents(t[None])})[0]) is not None])
    assert "one by one" not in " ".join(linear.methods.values())
    (together,) = linear({edge: Tangents(tangents)})
    assert together is not None and close(together, alone)
    assert linear.methods == {f"aten.{op}.default": f"{method}, one by one"}


def test_chunks_are_sized_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    program = zoo("resnet").objective.program
    monkeypatch.setattr(chunks, "CPU_ROOM", 6 * program.bytes_per_example)
    assert [chunk_size(program, examples) for examples in (1, 2, 3, 7)] == [6, 3, 2, 1]


def test_a_chunk_holds_a_tangent() -> None:
    with pytest.raises(ScoreError, match="one tangent or more, not 0"):
        zoo("mlp").refined(0)


def test_the_size_of_a_chunk_is_passed_on() -> None:
    case = zoo("mlp")
    batches = [(case.inputs, case.targets)]
    one, several = (
        score(case.objective.program.graph, batches, loss="mse", morphisms=(Split(),), steps=2, chunk=n) for n in (1, 3)
    )
    for a, b in zip(one, several, strict=True):
        assert a.spec == b.spec and b.predicted == pytest.approx(a.predicted, rel=1e-9)
    with pytest.raises(ScoreError, match="chunk is 0, not a whole number from 1"):
        score(case.objective.program.graph, batches, loss="mse", morphisms=(Split(),), steps=2, chunk=0)
