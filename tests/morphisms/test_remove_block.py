"""Removal of blocks: what goes with them, what stays, and what the prediction is worth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archir.api import score
from archir.cost import cost
from archir.errors import PassError
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.training import evaluate as evaluate_on
from archir.ir.node import Value
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.reference import refer
from archir.rewrite.spec import format_spec
from archir.scoring.losses import find_loss
from archir.testing import evaluate, outputs, randomise, relative_difference
from frontends.pytorch import trace
from passes.blend_activation import BlendActivation
from passes.deepen import Deepen
from passes.duplicate_block import DuplicateBlock
from passes.mixture_branch import MixtureBranch
from passes.parallel_branch import ParallelBranch
from passes.remove_block import RemoveBlock
from passes.residual_branch import ResidualBranch
from passes.self_attention import SelfAttention
from passes.skip_connection import SkipConnection
from passes.squeeze_excite import SqueezeExcite
from tests.morphisms.block_models import Images, Odd, capture, images, tokens
from tests.morphisms.every import capture as capture_zoo
from tests.morphisms.every import inject, outputs_of, some_sites


def test_what_only_the_block_needed_goes_with_it() -> None:
    graph, inputs = images()
    assert [s.label for s in RemoveBlock().sites(graph)] == ["gated.0", "gated.1", "parallel"]
    after = RemoveBlock("gated.1").apply(graph)
    assert not [name for name in after.by_name if name.startswith("gated.1.")]
    assert len(after.parameters) == len(graph.parameters) - len([n for n in graph.by_name if n.startswith("gated.1.")])
    graph, inputs = tokens()
    after = RemoveBlock("blocks.1").apply(graph)
    idle = graph.with_tensors({n: torch.zeros_like(graph.tensor(n)) for n in graph.by_name if "blocks.1." in n})
    assert relative_difference(outputs(after, inputs), outputs(idle, inputs)) < 1e-12


def test_tensors_that_others_use_stay_without_its_name() -> None:
    class Block(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tanh(self.linear(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Linear(6, 6)
            self.one, self.two = Block(nn.Linear(6, 6)), Block(nn.Linear(6, 6))
            self.two.linear.weight = self.one.linear.weight
            self.head = nn.Linear(6, 2)
            self.shared = shared

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.two(self.one(self.shared(x))))
            return found

    torch.manual_seed(0)
    graph, _ = capture(Net(), torch.randn(3, 6))
    after = RemoveBlock("one").apply(graph)
    parameter = after.by_name["two.linear.weight"].parameter
    assert parameter is not None
    assert parameter.names == ("two.linear.weight",)
    assert "one.linear.bias" not in after.by_name


def test_what_cannot_be_removed_is_said() -> None:
    torch.manual_seed(0)
    graph, _ = capture(Odd("both"), torch.randn(3, 4))
    assert not list(RemoveBlock().sites(graph))
    for path, reason in {"block": "several values", "head": "no call", "last": "no value of the type"}.items():
        found = RemoveBlock(path).match(graph)
        assert isinstance(found, Miss)
        assert reason in found.reason
        with pytest.raises(PassError, match=reason):
            RemoveBlock(path).apply(graph)
    graph, _ = capture(Odd("post_norm"), torch.randn(3, 4))
    assert [s.label for s in RemoveBlock().sites(graph)] == ["block"]


def test_predictions_rank_blocks_as_the_truth_does() -> None:
    torch.manual_seed(0)
    model = Images()
    with torch.no_grad():
        for block in (model.gated[0], model.gated[1]):
            block.norm.weight.mul_(0.1)  # type: ignore[union-attr, operator]
    graph = trace(model, (torch.randn(3, 1, 8, 8),))
    on = Examples(torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,)))
    found = score(graph, Batches(on, 32), morphisms=(RemoveBlock(),), steps=1, refine=10)
    loss = find_loss("cross_entropy")
    before = evaluate_on(graph.module(), on, loss).loss
    true = [evaluate_on(found.apply([s]).module(), on, loss).loss - before for s in found]
    assert len(true) == 3
    assert true == pytest.approx([s.predicted for s in found], rel=0.3, abs=1e-4)


INSERTIONS: dict[Morphism, tuple[str, ...]] = {
    BlendActivation(): ("resnet", "gpt"),
    Deepen(): ("resnet", "mlp"),
    Deepen(norm=True): ("vgg",),
    DuplicateBlock(): ("resnet",),
    MixtureBranch(): ("gpt", "vgg"),
    ParallelBranch(): ("resnet", "gpt"),
    ParallelBranch(rank=2, activate=True): ("resnet",),
    ResidualBranch(): ("resnet", "encoder"),
    SelfAttention(): ("gpt", "vgg"),
    SkipConnection(): ("resnet", "gpt"),
    SqueezeExcite(): ("resnet", "vit", "mlp"),
}
"""Passes that insert modules, and models in which they do."""


@pytest.mark.parametrize(
    ("insertion", "name"),
    [(insertion, name) for insertion, names in INSERTIONS.items() for name in names],
    ids=lambda v: v if isinstance(v, str) else format_spec(v),
)
def test_what_was_inserted_can_be_removed_after_training(insertion: Morphism, name: str) -> None:
    graph, inputs, _ = capture_zoo(name)
    known = {c.block for c in RemoveBlock().candidates(graph)}
    for site in some_sites(insertion, graph, 2):
        larger = randomise(site.members[0].apply(graph), seed=5)
        new = [c for c in RemoveBlock().sites(larger) if c.label not in known]
        (removal,) = new
        (member,) = removal.members
        smaller = member.apply(larger)
        assert cost(smaller) == cost(graph) and smaller.by_name.keys() == graph.by_name.keys()
        trained = graph.with_tensors({n: larger.tensor(n) for n in graph.by_name})
        there = evaluate(larger, inputs)
        assert relative_difference(outputs(smaller, inputs), outputs(trained, inputs)) < 1e-12
        assert relative_difference(outputs(smaller, inputs), outputs_of(larger, there)) > 1e-6
        perturbation = member.perturbation(larger, removal)
        assert not isinstance(perturbation, Miss)
        assert not perturbation.theta
        moved = inject(larger, there, perturbation.delta(there, {}))
        assert relative_difference(moved, outputs_of(smaller, evaluate(smaller, inputs))) < 1e-9


def test_what_was_inserted_into_another_insertion_goes_alone_too() -> None:
    graph, *_ = capture_zoo("resnet")
    site, *_ = ResidualBranch().sites(graph)
    one = site.members[0].apply(graph)
    made = next(c for c in one.calls if c.born and c.op == "aten.add.Tensor")
    two = Deepen(refer(one, Value(made.id))).apply(one)
    three = SqueezeExcite(refer(two, Value(made.id))).apply(two)
    labels = {s.label for s in RemoveBlock().sites(three)} - {s.label for s in RemoveBlock().sites(graph)}
    path = made.location.module if made.location else ""
    assert labels == {path, f"{path}.deeper", f"{path}.squeeze_excite"}
    back = apply_passes(three, [RemoveBlock(f"{path}.squeeze_excite"), RemoveBlock(f"{path}.deeper")])
    assert str(back) == str(one)
    assert cost(RemoveBlock(path).apply(three)) == cost(graph)


def test_gates_of_the_users_own_are_candidates() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(6, 2), nn.Linear(2, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(self.up(torch.relu(self.down(x))))

    graph, _ = capture(nn.Sequential(nn.Linear(6, 6), Gate(), nn.Linear(6, 2)), torch.randn(3, 6))
    assert [s.label for s in RemoveBlock().sites(graph)] == ["1"]
    after = RemoveBlock("1").apply(graph)
    assert {n.op for n in after.calls} == {"aten.linear.default"} and len(after.parameters) == 4


@pytest.mark.parametrize("insertion", [ResidualBranch("%1"), SqueezeExcite("%1"), ParallelBranch("%1"), Deepen("%1")])
def test_predictions_are_true_where_all_is_linear_downstream(insertion: Morphism) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)).double()
    larger = randomise(insertion.apply(trace(net, (torch.randn(3, 5).double(),))), seed=1)
    on = Examples(torch.randn(64, 5).double(), torch.randn(64, 2).double())
    (found,) = scores = score(larger, Batches(on, 32), morphisms=(RemoveBlock(),), loss="mse", steps=1)
    loss = find_loss("mse")
    smaller = scores.apply([found])
    true = evaluate_on(smaller.module(), on, loss).loss - evaluate_on(larger.module(), on, loss).loss
    assert found.predicted == pytest.approx(true, rel=1e-6)
    assert abs(true) > 1e-4
    assert scores.cost_of([found]) == cost(smaller) and (cost(smaller) - cost(larger)).frees
