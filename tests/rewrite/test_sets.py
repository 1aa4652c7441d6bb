"""Sets of rewrites applied as one, and sequences of them."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.node import Value
from archir.ir.parse import parse_graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import apply_passes, apply_together, rewrite_together
from archir.rewrite.spec import parse_specs
from archir.rewrite.theta import Theta
from archir.testing import outputs, relative_difference, zeroed
from frontends.pytorch import trace
from passes.catalog import PASSES
from passes.dilate import Dilate
from passes.enlarge_kernel import EnlargeKernel
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import randomised
from tests.models.zoo import FROZEN, ZOO


@pytest.mark.parametrize("name", sorted(ZOO.keys() - FROZEN))
def test_a_set_is_applied_as_one(name: str) -> None:
    """Splits and fresh units of many widths at once keep the function; prunes do what zeros do."""
    graph, inputs = randomised(name)
    right = outputs(graph, inputs)
    dice = random.Random(0)
    keeping: list[tuple[Morphism, Theta | None]] = []
    for morphism in (Split(), Widen(count=2)):
        for site in morphism.sites(graph):
            chosen = dice.sample(site.members, k=min(2, len(site.members)))
            keeping += [(member, None) for member in chosen if not keeping or dice.random() < 0.7]
    grown = apply_together(graph, keeping)
    assert grown.parameter_count > graph.parameter_count
    assert relative_difference(outputs(grown, inputs), right) < 1e-9
    widths = infer_widths(graph)
    exact = [w for w in widths if not w.roles & {"norm", "reduced"}]
    chosen_widths = [w for w in exact if dice.random() < 0.7] or exact
    removed = {w.name: sorted(dice.sample(range(w.size), k=w.size // 3 or 1)) for w in chosen_widths}
    smaller = apply_together(graph, [(Prune(n, tuple(units)), None) for n, units in removed.items()])
    assert smaller.parameter_count < graph.parameter_count
    assert relative_difference(outputs(smaller, inputs), outputs(zeroed(widths, removed), inputs)) < 1e-9


@pytest.mark.parametrize("count", [1, 20])
def test_theta_follows_its_weight_through_other_rewrites(count: int) -> None:
    """A ring of zeros around kernels changes nothing, whatever is learned for the units of their widths."""
    graph, inputs = randomised("resnet")
    width = next(w for w in infer_widths(graph) if "matched" not in w.roles and w.size < 20)
    perturbations = {
        m: m.perturbation(graph, next(s for s in m.sites(graph) if s.label == width.name))
        for m in (Split(), Widen(count=count))
    }
    values = {Value(i): t for i, t in graph.tensors.items()}
    thetas = {m: p.initial_theta(values, 0) for m, p in perturbations.items() if not isinstance(p, Miss)}
    splits: list[tuple[Morphism, Theta | None]] = [(Split(width.name, (u,)), thetas[Split()]) for u in (0, 1)]
    members = [*splits, (Widen(width.name, count), thetas[Widen(count=count)])]
    alone = outputs(apply_together(graph, members), inputs)
    rings: list[tuple[Morphism, Theta | None]] = [(s.members[0], None) for s in EnlargeKernel().sites(graph)]
    assert rings and relative_difference(alone, outputs(graph, inputs)) > 1e-6
    assert relative_difference(outputs(apply_together(graph, [*members, *rings]), inputs), alone) < 1e-9


def test_momentum_of_the_taps_that_stay_is_kept() -> None:
    """Every second tap of the kernel is zero, so that it fits a coarser grid; the momentum of those goes."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 5, padding=2)
    with torch.no_grad():
        conv.weight *= torch.tensor([1.0, 0, 1, 0, 1]) * torch.tensor([[1.0], [0], [1], [0], [1]])
    graph = trace(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(2, 1, 1)), (torch.randn(2, 1, 8, 8),))
    rewriting = rewrite_together(graph, [(Dilate("%0", 2), None), (Split("w0", (1,)), None)])
    momentum = {i: torch.arange(1.0, 1 + t.numel()).reshape(t.shape) for i, t in graph.tensors.items()}
    carried = rewriting.carry(momentum)
    assert {i: t.shape for i, t in carried.items()} == {i: t.shape for i, t in rewriting.after.tensors.items()}
    kernel = graph.by_name["0.weight"].id
    taps = momentum[kernel][:, :, ::2, ::2]
    assert torch.equal(carried[kernel], torch.cat([taps[:1], taps[1:] / 2, taps[1:] / 2]))
    assert all(bool(t.all()) for t in carried.values())


@pytest.mark.parametrize("name", ["resnet", "gpt", "shufflenet", "unet", "densenet", "mobilenet", "lstm"])
def test_sequences_of_morphisms_keep_the_function_and_replay(name: str) -> None:
    graph, inputs = randomised(name)
    right = outputs(graph, inputs)
    dice = random.Random(1)
    done = graph
    for _ in range(12):
        width = dice.choice([*infer_widths(done)])
        choices: list[WidthMorphism] = [
            Split(width.name, (dice.randrange(width.size),)),
            Widen(width.name, count=1 + dice.randrange(2)),
            Split(width.name),
        ]
        try:
            done = dice.choice(choices[: 2 if width.size > 40 else 3]).apply(done)
        except PassError as error:
            assert error.why
    assert done.history
    assert relative_difference(outputs(done, inputs), right) < 1e-9
    assert str(parse_graph(str(done))) == str(done)
    replayed = apply_passes(graph, parse_specs("; ".join(done.history), PASSES))
    assert str(replayed) == str(done)
    assert relative_difference(outputs(replayed, inputs), right) < 1e-9
