"""Scoring where memory runs out: it is done on halves of chunks and of batches, and finds what it finds otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from archir.errors import ScoreError
from archir.ir.device_memory import attempt, is_out_of_memory
from archir.scoring import chunks
from archir.scoring.batches import BoundBatch, bind_batches
from archir.scoring.chunks import chunk_size, singly
from archir.scoring.families import find_families
from archir.scoring.learn import learn
from archir.scoring.objective import Curvature, Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.parts import Parts
from archir.scoring.refine import Refinement, refine
from archir.scoring.screen import screen
from archir.testing import randomise
from passes.prune import Prune
from passes.split import Split
from tests.models.captured import graph_of
from tests.models.zoo import ZOO
from tests.scoring.scarce import KINDS, Scarce

EXAMPLES = 12


class Case:
    """A convolutional network with its candidates, on one batch of class numbers."""

    def __init__(self, loss: str = "cross_entropy", *, batch_statistics: bool = False) -> None:
        torch.manual_seed(0)
        graph = randomise(graph_of("resnet").to(torch.float64))
        self.objective = make_objective(graph, loss, batch_statistics=batch_statistics)
        families, _ = find_families(self.objective.program.graph, (Split(), Prune()))
        self.perturbations = [family.perturbation for family in families]
        options = ScoreOptions(steps=0, seed=1)
        (inputs,) = (t.double() for t in ZOO["resnet"].inputs(EXAMPLES))
        outputs = self.objective.program(self.objective.program.bind(inputs)).outputs[0]
        targets = torch.arange(EXAMPLES) % outputs.shape[1] if loss == "cross_entropy" else torch.randn_like(outputs)
        self.batches = bind_batches(self.objective.program, [(inputs, targets)])
        self.thetas = learn(self.objective, self.perturbations, self.batches, options).thetas

    def refined(self, chunk: int | None = None) -> Refinement:
        places = [(f, m) for f, p in enumerate(self.perturbations[:4]) for m in range(min(2, p.members))]
        return refine(self.objective, self.perturbations, self.thetas, singly(places), self.batches, chunk=chunk)

    def screened(self) -> list[Tensor]:
        found = screen(self.objective, self.perturbations, self.thetas, self.batches, seed=5)
        return [t for e in found for t in (e.first_order, e.curvature, e.stderr)]

    def learned(self) -> list[Tensor]:
        options = ScoreOptions(steps=3, seed=1)
        found = learn(self.objective, self.perturbations, self.batches, options)
        return [found.estimates, *(t for theta in found.thetas for t in theta.values())]


def plenty(work: Callable[[], object]) -> int:
    """Return the numbers of the largest tensor that some work makes."""
    with Scarce() as memory:
        work()
    largest: int = memory.largest
    return largest


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_halved_where_memory_runs_out(kind: str) -> None:
    case = Case()
    many, one = plenty(lambda: case.refined(8)), plenty(lambda: case.refined(1))
    assert one < many / 2
    with Scarce(many // 2, kind) as memory:
        found = case.refined(8)
    expected = case.refined(8)
    assert memory.refused and len(found.batches) == 1
    same([found.first_order, found.gram, found.stderr], [expected.first_order, expected.gram, expected.stderr])
    assert found.methods == expected.methods, "no operator has taken tangents one by one"


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_halved_where_one_tangent_is_too_much(kind: str) -> None:
    case = Case()
    with Scarce(plenty(lambda: case.refined(1)) // 2, kind) as memory:
        found = case.refined(1)
    expected = case.refined(1)
    assert memory.refused and len(found.batches) > 1
    assert sum(len(batch.flat) for batch in found.batches) == EXAMPLES
    same([found.first_order, found.gram, found.stderr], [expected.first_order, expected.gram, expected.stderr])
    assert found.linearised([0, 3]) == pytest.approx(expected.linearised([0, 3]), rel=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("work", ["screened", "learned"])
def test_what_is_screened_and_learned_on_halves_is_that_on_whole_batches(work: str, loss: str) -> None:
    """The random signs of the curvature are drawn again as they were, and no gradient is left behind."""
    case = Case(loss)
    expected: list[Tensor] = getattr(case, work)()
    for share in (2, 4):
        with Scarce(plenty(getattr(case, work)) // share) as memory:
            found = getattr(case, work)()
        assert memory.refused
        same(found, expected)


def test_learning_is_done_in_halves_where_memory_runs_out_after_the_network_was_differentiated() -> None:
    case, only = Case(), ("aten::addcmul",)
    expected = case.learned()
    with Scarce(only=only) as memory:
        case.learned()
    with Scarce(memory.largest // 2, only=only) as scarce:
        found = case.learned()
    assert scarce.refused
    same(found, expected)


def test_a_size_that_is_too_large_is_not_tried_again() -> None:
    case, seen = Case(), list[int]()

    def work(part: BoundBatch) -> int:
        seen.append(part.examples)
        if part.examples > 4:
            raise torch.OutOfMemoryError
        return part.examples

    parts = Parts(case.objective)
    assert list(parts.each(case.batches, work)) == [3] * 4
    assert list(parts.each(case.batches, work)) == [3] * 4
    assert seen == [12, 6, 3, 3, 3, 3, 3, 3, 3, 3]


def test_what_else_goes_wrong_is_not_tried_again() -> None:
    case, seen = Case(), list[int]()

    def work(part: BoundBatch) -> None:
        seen.append(part.examples)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(Parts(case.objective).each(case.batches, work))
    assert seen == [EXAMPLES]


def test_an_example_that_does_not_fit_is_told_of() -> None:
    case = Case()

    def work(part: BoundBatch) -> None:
        raise MemoryError

    with pytest.raises(ScoreError, match=r"too little memory to score on an example\n.*on cpu\n.*more memory"):
        list(Parts(case.objective).each(case.batches, work))


def test_examples_that_depend_on_each_other_stay_together() -> None:
    case = Case(batch_statistics=True)
    wanted = r"too little memory to score on a batch of 12 examples\n.*on cpu\n.*depend on each other"
    with pytest.raises(ScoreError, match=wanted), Scarce(plenty(case.screened) // 2):
        case.screened()


def test_an_input_that_is_shared_keeps_a_batch_whole() -> None:
    case = Case()
    (batch,) = case.batches
    odd = replace(batch, inputs={value: t[:5] for value, t in batch.inputs.items()})

    def work(part: BoundBatch) -> None:
        raise MemoryError

    with pytest.raises(ScoreError, match="does not run over its examples"):
        list(Parts(case.objective).each([odd], work))


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    for make in (*KINDS.values(), MemoryError):
        assert is_out_of_memory(make())
        wrapped = ScoreError("rejects its operands")
        wrapped.__cause__ = make()
        assert is_out_of_memory(wrapped) and attempt(partial(_raise, wrapped)) is None
    assert not is_out_of_memory(RuntimeError("a size")) and not is_out_of_memory(ScoreError("a size"))
    assert attempt(lambda: None) == (None,)
    with pytest.raises(ValueError, match="a size"):
        attempt(lambda: _raise(ValueError("a size")))


def _raise(error: Exception) -> None:
    raise error


def test_nothing_is_held_of_what_was_tried() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def work() -> None:
        held = Held()
        raise torch.OutOfMemoryError(str(held))

    assert attempt(work) is None and not Held.alive


def test_a_chunk_takes_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Case().objective.program
    one = program.bytes_per_example
    monkeypatch.setattr(chunks, "free_on", lambda device: 12 * one)
    monkeypatch.setattr(chunks, "CPU_ROOM", 100 * one)
    assert [chunk_size(program, examples) for examples in (1, 3, 7)] == [3, 1, 1]
    monkeypatch.setattr(chunks, "CPU_ROOM", 2 * one)
    assert chunk_size(program, 1) == 2
    monkeypatch.setattr(program, "device", torch.device("cuda", 0))
    assert chunk_size(program, 1) == 3


def test_the_exact_curvature_is_halved_too() -> None:
    case = Case()

    def exact() -> list[Tensor]:
        found = screen(case.objective, case.perturbations, case.thetas, case.batches, curvature=Curvature.EXACT)
        return [t for e in found for t in (e.first_order, e.curvature, e.stderr)]

    expected = exact()
    with Scarce(plenty(exact) // 2) as memory:
        found = exact()
    assert memory.refused
    same(found, expected)


def test_the_objective_says_what_is_coupled() -> None:
    objective: Objective = Case(batch_statistics=True).objective
    assert objective.coupled and not Case().objective.coupled
