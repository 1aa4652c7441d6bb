"""Batches in parts: what is summed over examples does not change, and less is held at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archir.api import score
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.node import Value
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.theta import Theta
from archir.scoring import batches as batching
from archir.scoring.batches import MOST_PARTS, bind_batches, in_parts
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.learn import learn
from archir.scoring.losses import coupled
from archir.scoring.objective import Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.program import Inputs, Program, number_of_examples
from archir.scoring.refine import Refinement, refine
from archir.scoring.screen import screen
from archir.scoring.set_models import Linearised
from archir.testing import randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.zoo import ZOO
from tests.scoring.scarce import take_small_parts

EXAMPLES = 7


def setting(name: str) -> tuple[Objective, list[Perturbation], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    (x,) = ZOO[name].inputs(EXAMPLES)
    graph = randomise(graph_of(name).to(torch.float64))
    perturbations = [f.perturbation for f in find_families(graph, (Split(), Prune(), Widen(count=2)))[0]]
    inputs = x.double() if x.is_floating_point() else x
    objective = make_objective(graph, "cross_entropy")
    program = objective.program
    outputs = program(program.bind(inputs)).outputs[0]
    targets = torch.randint(0, outputs.shape[-1], outputs.shape[:-1])
    return objective, perturbations, [(inputs, targets)]


def everything(
    objective: Objective, perturbations: list[Perturbation], batches: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], tuple[Theta, ...]]:
    """Return all estimates, and θ."""
    learned = learn(objective, perturbations, batches, ScoreOptions(steps=2))
    screened = screen(objective, perturbations, learned.thetas, batches)
    chosen = [(f, m) for f, p in enumerate(perturbations) for m in range(min(p.members, 2))]
    refined = refine(objective, perturbations, learned.thetas, singly(chosen), batches)
    found = [learned.estimates, refined.first_order, refined.gram, refined.stderr, after(refined)]
    return [*found, *(t for e in screened for t in (e.first_order, e.curvature, e.stderr))], learned.thetas


def after(refined: Refinement) -> Tensor:
    """Return what the linearised network makes of the first candidate with each of the others."""
    growing = Linearised(refined).start()
    growing.add(0, refined.linearised([0]))
    return growing.judge(range(len(refined.first_order)))


@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_parts_give_what_the_whole_batch_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = setting(name)
    expected, thetas = everything(*case)
    take_small_parts(monkeypatch)
    found, others = everything(*case)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))
    for one, other in zip(others, thetas, strict=True):
        assert all(torch.allclose(one[key], other[key], rtol=1e-9) for key in other)


def test_parts_are_nearly_equal_and_as_many_as_the_activations_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(EXAMPLES, 4)
    objective = make_objective(trace(nn.Linear(4, 5), (x,)), "cross_entropy")
    targets = torch.arange(EXAMPLES)
    # 20 bytes of activations for each example, and 100 of stored tensors
    parts = {(1, 0): [1, 2, 2, 2], (60, 0): [3, 4], (71, 0): [7], (999, 0): [7], (1, 1): [7]}
    for (smallest, each), sizes in parts.items():
        monkeypatch.setattr(batching, "SMALLEST_PART", smallest)
        monkeypatch.setattr(batching, "PER_STORED", each)
        found = list(in_parts(objective, bind_batches(objective.program, [(x, targets)])))
        assert [number_of_examples(b.targets) for b in found] == [b.examples for b in found] == sizes
        assert len(found) <= MOST_PARTS
        labels = [b.targets for b in found if isinstance(b.targets, Tensor)]
        assert torch.equal(torch.cat(labels), targets)
        assert torch.equal(torch.cat([next(iter(b.inputs.values())) for b in found]), x)


def test_inputs_without_examples_are_in_every_part_and_those_that_do_not_fit_are_left_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_small_parts(monkeypatch)
    builder = Builder()
    x, scale = builder.input("x", "f32[B, 4]"), builder.input("scale", "f32[4]")
    graph = builder.graph(builder.call("aten.mul.Tensor", x, scale))
    inputs, targets = (torch.randn(4, 4), torch.randn(4)), torch.zeros(4)
    objective = make_objective(graph, "mse")
    found = list(in_parts(objective, bind_batches(objective.program, [(inputs, targets)])))
    assert [b.inputs[x].shape[0] for b in found] == [1, 1, 1, 1]
    assert all(torch.equal(b.inputs[scale], inputs[1]) for b in found)
    (whole,) = in_parts(objective, bind_batches(objective.program, [(inputs, targets[:3])]))
    assert whole.inputs[x].shape[0] == 4
    assert whole.examples == 3
    together = make_objective(graph, coupled(lambda outputs, targets: outputs.sum()))
    (whole,) = in_parts(together, bind_batches(together.program, [(inputs, targets)]))
    assert len(whole.inputs[x]) == whole.examples == 4


def test_nested_targets_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_small_parts(monkeypatch)
    x = torch.randn(4, 4)
    loss = lambda outputs, targets: (outputs[:, 0] - targets["a"][0]) ** 2  # noqa: E731
    objective = make_objective(trace(nn.Linear(4, 5), (x,)), loss)
    given = {"a": (torch.arange(4),)}
    found: list[Any] = [b.targets for b in in_parts(objective, bind_batches(objective.program, [(x, given)]))]
    assert [t["a"][0].tolist() for t in found] == [[0], [1], [2], [3]]


def test_a_batch_is_bound_once_and_then_used_by_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []
    bind = Program.bind

    def watched(self: Program, inputs: Inputs) -> dict[Value, Any]:
        bound.append(id(inputs))
        return bind(self, inputs)

    monkeypatch.setattr(Program, "bind", watched)
    x = torch.randn(8, 4)
    graph = trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (x,))
    batches = [(part, torch.arange(4) % 3) for part in torch.split(x, 4)]
    scores = score(graph, batches, morphisms=(Split(), Prune()), steps=5)
    assert scores.choose(3) and bound == [id(inputs) for inputs, _ in batches]
    found = bind_batches(scores.objective.program, batches)
    assert all(one is other for one, other in zip(bind_batches(scores.objective.program, found), found, strict=True))
    together = scores.together([s for s in scores if s.theta][:2])
    bound.clear()
    assert together.learned(found).linearised(found) != together.linearised(found)
    assert bound == []
