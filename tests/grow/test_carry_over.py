"""What an optimiser has gathered, after a rewriting: what it would have gathered in the network as it is then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.grow.optimisers import OptimiserOptions
from archir.grow.trainer import Trainer, carry_over
from archir.ir.graph import Graph
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.pipeline import rewrite_together
from archir.testing import randomise
from passes.merge import Merge
from passes.split import Split
from tests.models.captured import graph_of
from tests.models.zoo import ZOO

STILL = {
    "sgd": OptimiserOptions(name="sgd", rate=0.0, weight_decay=0.0, momentum=0.9, nesterov=False),
    "adamw": OptimiserOptions(name="adamw", rate=0.0, weight_decay=0.1),
}
"""Optimisers that gather gradients and leave the weights where they are."""

STEPS = 3


def batches(name: str) -> list[tuple[Sequence[object], Mapping[str, object]]]:
    torch.manual_seed(0)
    example = ZOO[name]
    made = [(example.inputs(3), example.kwargs(3)) for _ in range(STEPS)]
    found: list[tuple[Sequence[object], Mapping[str, object]]] = pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, made
    )
    return found


def gathered(graph: Graph, options: OptimiserOptions, name: str) -> dict[str, Tensor]:
    """Return the state after some steps of the loss `Σ sin(outputs)`, in evaluation mode."""
    trainer = Trainer(graph, options)
    trainer.module.eval()
    for args, kwargs in batches(name):
        trainer.optimiser.zero_grad()
        outputs = pytree.tree_leaves(trainer.module(*args, **kwargs))
        loss = torch.stack([t.sin().sum() for t in outputs if isinstance(t, Tensor)]).sum()
        torch.autograd.backward(loss)
        trainer.optimiser.step()
    return trainer.state()


def check(
    graph: Graph,
    members: Sequence[WidthMorphism],
    options: OptimiserOptions,
    name: str,
    before: dict[str, Tensor] | None = None,
) -> None:
    """Compare what is carried over with what the rewritten graph gathers; `before` is what the graph gathered."""
    rewriting = rewrite_together(graph, [(m, None) for m in members])
    carried = carry_over(gathered(graph, options, name) if before is None else before, rewriting)
    expected = gathered(rewriting.after, options, name)
    torch.testing.assert_close(carried, expected, rtol=1e-7, atol=1e-10)


MODELS = ["mlp", "resnet", "densenet", "gpt_tied", "grouped_query_attention", "lstm", "rotary_embedding", "shufflenet"]


@pytest.mark.parametrize("options", STILL)
@pytest.mark.parametrize("name", MODELS)
def test_copies_hold_what_they_would_have_gathered(name: str, options: str) -> None:
    graph = randomise(graph_of(name).to(torch.float64))
    before = gathered(graph, STILL[options], name)
    applied = 0
    for width in infer_widths(graph):
        for morphism in (Split(width.name, (1,)), Split(width.name, (0, width.size - 1)), Split(width.name)):
            try:
                check(graph, [morphism], STILL[options], name, before)
            except PassError as error:
                assert error.why
            else:
                applied += 1
    assert applied


@pytest.mark.parametrize("options", STILL)
@pytest.mark.parametrize("name", ["mlp", "resnet", "lstm"])
def test_what_is_split_and_merged_again_is_as_before(name: str, options: str) -> None:
    graph = randomise(graph_of(name).to(torch.float64))
    width = next(iter(infer_widths(graph)))
    split = Split(width.name, (1,)).apply(graph)
    check(split, [Merge(width.name, (1, width.size))], STILL[options], name)


def test_copies_of_several_widths_at_once() -> None:
    graph = randomise(graph_of("resnet").to(torch.float64))
    check(graph, [Split(w.name, (0, 1)) for w in infer_widths(graph)], STILL["adamw"], "resnet")
