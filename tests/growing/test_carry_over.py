"""What an optimiser has gathered, after a rewriting: what it would have gathered in the network as it is then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.rewrite.compose import Compose
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from archir.testing import randomise
from passes.merge import Merge
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.zoo import ZOO
from tests.morphisms.every import PLACES, SPLICES

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


def gathered(graph: Graph, options: OptimiserOptions, name: str) -> Trainer:
    """Return a trainer after some steps of the loss `Σ sin(outputs)`, in evaluation mode."""
    trainer = Trainer(graph, GrowOptions(optimiser=options))
    trainer.module.eval()
    for args, kwargs in batches(name):
        trainer.optimiser.zero_grad()
        outputs = pytree.tree_leaves(trainer.module(*args, **kwargs))
        loss = torch.stack([t.sin().sum() for t in outputs if isinstance(t, Tensor)]).sum()
        torch.autograd.backward(loss)
        trainer.optimiser.step()
    return trainer


def check(
    graph: Graph,
    members: Sequence[Morphism],
    options: OptimiserOptions,
    name: str,
    before: Trainer | None = None,
) -> int:
    """Compare what is carried over with what the rewritten graph gathers, but for what is new, which has none yet.

    Args:
        graph: the graph.
        members: the rewrites.
        options: the optimiser.
        name: the model the graph is of.
        before: what the graph gathered.

    Returns:
        How many stored tensors have new places beside old ones.
    """
    rewriting = rewrite_together(graph, [(m, None) for m in members])
    carried = (gathered(graph, options, name) if before is None else before).become(rewriting).state()
    expected = gathered(rewriting.after, options, name).state()
    grown = 0
    for key, found in carried.items():
        node = graph.by_name[key.partition("/")[2]].id
        by = rewriting.maps.get(node)
        if by is not None and found.dim() and bool((fresh := by.fresh(graph.tensors[node])).any()):
            assert not found[fresh].any()
            carried[key], expected[key] = found[~fresh], expected[key][~fresh]
            grown += 1
    new = {n for node in rewriting.added if node.parameter for n in node.parameter.names}
    assert {key for key in expected if key.partition("/")[2] not in new} == carried.keys()
    torch.testing.assert_close(carried, {key: expected[key] for key in carried}, rtol=1e-7, atol=1e-10)
    return grown


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


SAME = [m for m in SPLICES if m.preserves == "the function"]


@pytest.mark.parametrize("options", STILL)
@pytest.mark.parametrize("morphism", SAME, ids=lambda m: m.name)
def test_what_stays_holds_what_it_would_have_gathered(morphism: Morphism, options: str) -> None:
    """A branch that gives zero, or a layer that is the identity, changes no gradient of what was there before."""
    names = [
        name for name in ("resnet", "gpt_tied", "mlp", "lstm", "mobilenet", "vit") if name in PLACES[morphism.name]
    ]
    for name in names[:2] or PLACES[morphism.name][:1]:
        graph = randomise(graph_of(name).to(torch.float64))
        before = gathered(graph, STILL[options], name)
        sites = list(morphism.sites(graph))
        grown = [
            check(graph, [site.members[0]], STILL[options], name, before) for site in sites[:: -(-len(sites) // 3)]
        ]
        assert grown and (morphism.name not in ("enlarge-kernel", "dilate") or any(grown))


@pytest.mark.parametrize("options", STILL)
@pytest.mark.parametrize("name", ["resnet", "gpt_tied", "mobilenet"])
def test_splices_and_changes_of_widths_together(name: str, options: str) -> None:
    """The momentum of a width goes through a larger kernel and a split as one, and through composites."""
    graph = randomise(graph_of(name).to(torch.float64))
    before = gathered(graph, STILL[options], name)
    splices = [next(iter(m.sites(graph))).members[0] for m in SAME if name in PLACES[m.name]]
    widths = [next(iter(Split().sites(graph))).members[0], Widen(next(iter(Widen().sites(graph))).label, 2)]
    done = 0
    for splice in splices:
        try:
            check(graph, [splice, *widths], STILL[options], name, before)
        except PassError as error:
            assert "norm" in error.why, "a norm that is spliced in is all that stands in the way"
        else:
            done += 1
    assert done > 3
    first = next(s for s in splices if s.name == "deepen")
    second = next(iter(Split().sites(first.apply(graph)))).members[0]
    check(graph, [Compose((first, second))], STILL[options], name, before)


@pytest.mark.parametrize("options", STILL)
def test_what_is_pruned_takes_its_state_with_it(options: str) -> None:
    graph = randomise(graph_of("resnet").to(torch.float64))
    trainer = gathered(graph, STILL[options], "resnet")
    before = trainer.state()
    for width in infer_widths(graph):
        carried = trainer.become(rewrite_together(graph, [(Prune(width.name, (0,)), None)])).state()
        for place in width.places:
            for slot in {key.partition("/")[0] for key in before} - {"step"}:
                key = f"{slot}/{place.parameter}"
                if key in before:
                    gone = width.positions(place, [0])
                    kept = [i for i in range(before[key].shape[place.axis]) if i not in gone.tolist()]
                    assert torch.equal(carried[key], before[key].index_select(place.axis, torch.tensor(kept)))


def test_copies_of_several_widths_at_once() -> None:
    graph = randomise(graph_of("resnet").to(torch.float64))
    check(graph, [Split(w.name, (0, 1)) for w in infer_widths(graph)], STILL["adamw"], "resnet")
