"""Wide outputs made in chunks: every estimate is that of the whole network, and the outputs are never held at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from archir.api import score
from archir.errors import ScoreError
from archir.rewrite.morphism import Morphism
from archir.rewrite.perturbation import Perturbation
from archir.scoring import stream
from archir.scoring.batches import bind_batches
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.learn import learn
from archir.scoring.objective import Curvature, Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from archir.scoring.set_models import Linearised
from archir.scoring.stream import StreamedObjective, streamed
from archir.testing import randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.tokens import GPT

CLASSES, LENGTH, AT_ONCE = 50, 6, 4 * 50


class Perceptron(nn.Module):
    """A model of tokens whose last layer reads a width that can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, 8)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.hidden(self.tokens(tokens)).tanh()))


class Positioned(nn.Module):
    """A model of tokens that adds what a net makes of the positions, the same for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(LENGTH, 3))
        self.inner, self.outer = nn.Linear(3, 5), nn.Linear(5, 8)
        self.tokens, self.head = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        bias = self.outer(self.inner(self.positions).tanh())
        return cast(Tensor, self.head((self.tokens(tokens) + bias).tanh()))


@dataclass(frozen=True)
class Case:
    """A model with both heads, the families of candidates, and two batches, some positions without a label."""

    whole: Objective
    chunked: Objective
    perturbations: Sequence[Perturbation]
    batches: Sequence[tuple[Tensor, Tensor]]


def case_of(model: nn.Module, morphisms: Sequence[Morphism] = (Split(), Prune()), *, streams: bool = True) -> Case:
    """Return a case; without the family that widens the stream, and so changes the outputs themselves, if so asked."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(0, CLASSES, (n, LENGTH), generator=generator) for n in (3, 4)]
    labels = [torch.randint(0, CLASSES, x.shape, generator=generator) for x in inputs]
    labels[0][0, 2:], labels[1][1] = -100, -100
    graph = randomise(trace(model, (inputs[0],)).to(torch.float64))
    every = [f.perturbation for f in find_families(graph, morphisms)[0]]
    perturbations = [p for p in every if streams or not p.edges.keys() & set(graph.output.values)]
    assert streams or len(every) - len(perturbations) <= 1
    whole, batches = make_objective(graph, "cross_entropy"), list(zip(inputs, labels, strict=True))
    bound = bind_batches(whole.program, batches)
    assert len(every) == len(perturbations) or streamed(whole, every, bound) is whole
    return Case(whole, streamed(whole, perturbations, bound), perturbations, batches)


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGEST_OUTPUTS", AT_ONCE)


CASES: Mapping[str, Callable[[], Case]] = {
    "gpt": lambda: case_of(GPT(CLASSES), (Split(), Prune(), Widen(count=2)), streams=False),
    "tied gpt": lambda: case_of(GPT(CLASSES, tied=True), (Split(), Prune(), Widen(count=2)), streams=False),
    "perceptron": lambda: case_of(Perceptron()),
    "positioned": lambda: case_of(Positioned(), (Split(), Prune(), Widen(count=2)), streams=False),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    found = CASES[request.param]()
    assert isinstance(found.chunked, StreamedObjective)
    return found


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_learning_and_screening_are_those_of_the_whole_network(case: Case) -> None:
    options = ScoreOptions(steps=3)
    expected = learn(case.whole, case.perturbations, case.batches, options)
    found = learn(case.chunked, case.perturbations, case.batches, options)
    assert close(found.estimates, expected.estimates)
    for a, b in zip(found.thetas, expected.thetas, strict=True):
        assert all(close(a[key], b[key]) for key in b)
    screened = [
        screen(objective, case.perturbations, expected.thetas, case.batches, seed=1)
        for objective in (case.chunked, case.whole)
    ]
    for one, other in zip(*screened, strict=True):
        assert close(one.first_order, other.first_order)
        assert close(one.curvature, other.curvature)
        assert close(one.stderr, other.stderr)


def test_refinement_is_that_of_the_whole_network(case: Case) -> None:
    thetas = learn(case.whole, case.perturbations, case.batches, ScoreOptions(steps=2)).thetas
    chosen = [(f, m) for f, p in enumerate(case.perturbations) for m in range(min(p.members, 2))]
    found, expected = (
        refine(objective, case.perturbations, thetas, singly(chosen), case.batches)
        for objective in (case.chunked, case.whole)
    )
    assert close(found.first_order, expected.first_order)
    assert close(found.gram, expected.gram)
    assert close(found.stderr, expected.stderr)
    one, other = (Linearised(refinement).start() for refinement in (found, expected))
    for number in (0, 3):
        change = float(one.judge([number])[0])
        assert change == pytest.approx(float(other.judge([number])[0]), rel=1e-9)
        one.add(number, change)
        other.add(number, change)
    assert close(one.estimates, other.estimates)
    assert close(one.judge([1, 2]), other.judge([1, 2]))
    assert found.batches[0].pushed[0].numel() < expected.batches[0].pushed[0].numel()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest number of elements of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type != "meta":
            self.elements = max(self.elements, result.numel())
        return result


def test_all_outputs_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = 1000
    monkeypatch.setattr(stream, "LARGEST_OUTPUTS", 2 * classes)
    torch.manual_seed(0)
    tokens = torch.randint(0, classes, (5, LENGTH))
    graph = trace(nn.Sequential(nn.Embedding(classes, 4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)), (tokens,))
    with Largest() as largest:
        found = score(graph, [(tokens, tokens.flip(1))], morphisms=(Split(), Prune()), steps=2, refine=4)
        found.linearised(found.choose(k=2))
        found.predict(found.table[:2], [(tokens, tokens.flip(1))])
    assert found.refined == 4
    assert largest.elements <= 6 * classes  # the last weight with one unit split; the outputs are 30,000 numbers


def test_a_change_beyond_the_input_of_the_last_layer_keeps_the_whole_network() -> None:
    case = case_of(Perceptron(), (Prune(), Widen()))
    (last,) = [v for _, v in case.whole.program.graph.output.operands()]
    assert any(last in p.edges for p in case.perturbations)
    assert case.chunked is case.whole


def test_what_is_not_wide_or_not_cross_entropy_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(Perceptron())
    objective = make_objective(case.whole.graph, lambda outputs, targets: outputs.square().mean((1, 2)))
    batches = bind_batches(case.whole.program, case.batches)
    assert streamed(objective, case.perturbations, batches) is objective
    probabilities = [(x, torch.ones(len(x), LENGTH, CLASSES)) for x, _ in case.batches]
    assert streamed(case.whole, case.perturbations, bind_batches(case.whole.program, probabilities)) is case.whole
    monkeypatch.setattr(stream, "LARGEST_OUTPUTS", 4 * LENGTH * CLASSES)
    assert streamed(case.whole, case.perturbations, batches) is case.whole


def test_labels_and_losses_are_checked() -> None:
    case = case_of(Perceptron())
    inputs, labels = case.batches[0]
    for objective in (case.whole, case.chunked):
        with pytest.raises(ScoreError, match="class numbers run from 50 to 50, the model has 50"):
            screen(objective, case.perturbations, [{}] * 3, [(inputs, torch.full_like(labels, CLASSES))])
    program = case.chunked.program
    evaluation = program(program.bind(inputs))
    infinite = [evaluation.outputs[0] * torch.inf]
    for check in (case.chunked.check, case.chunked.gradient):
        with pytest.raises(ScoreError, match=r"the loss cross_entropy is nan"):
            check(infinite, labels)


def test_the_exact_curvature_is_refused_for_many_features() -> None:
    case = case_of(Perceptron())
    with pytest.raises(ScoreError, match="exact curvature of 72 outputs"):
        screen(case.chunked, case.perturbations[:0], [], case.batches, curvature=Curvature.EXACT)
