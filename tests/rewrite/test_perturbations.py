"""A family says exactly what its members do where the subgraph of its width ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.axes.positions import occurrences, unit_index
from archir.ir.execute import call
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site, UnitMorphism
from archir.rewrite.perturbation import Members, Perturbation
from archir.rewrite.pipeline import apply_together
from archir.rewrite.theta import by_node
from archir.testing import evaluate, randomise, relative_difference
from frontends.pytorch import trace
from passes.merge import Merge
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of, randomised
from tests.models.zoo import FROZEN, ZOO


def str_of(value: object) -> str:
    """Return what a case is called."""
    return value.name if isinstance(value, UnitMorphism) else str(value)


def largest_member(delta: Tensor, members: Members) -> int:
    """Return the member of a family that changes the value on an edge most."""
    size = delta.abs().movedim(members.axis, 0).flatten(1).sum(1)
    count = int(members.index.max()) + 1
    return max(range(count), key=lambda member: float(size[members.index == member].sum()))


MORPHISMS: tuple[UnitMorphism, ...] = (Split(), Prune(), Widen(count=2), Merge())
"""The morphisms that change units of one width."""

EXACT: Mapping[str, tuple[int, ...]] = {
    "vgg": (3, 3, 3, 3),
    "resnet": (4, 4, 4, 4),
    "resnet20": (12, 12, 12, 12),
    "densenet": (4, 4, 4, 4),
    "mobilenet": (4, 4, 4, 4),
    "shufflenet": (5, 5, 5, 5),
    "unet": (5, 5, 5, 5),
    "vit": (2, 3, 4, 2),
    "swin": (1, 1, 1, 1),
    "siamese": (1, 1, 1, 1),
    "weight_standardisation": (1, 1, 1, 1),
    "broadcast_mask": (1, 1, 1, 1),
    "split_cascade": (4, 4, 4, 4),
    "dilated_pyramid": (3, 3, 3, 3),
    "decoder": (2, 2, 2, 2),
    "gpt": (3, 4, 5, 3),
    "gpt_tied": (3, 4, 4, 3),
    "grouped_query_attention": (4, 5, 6, 4),
    "rotary_embedding": (1, 1, 1, 1),
    "encoder": (4, 6, 6, 4),
    "lstm": (1, 1, 1, 1),
    "gru": (0, 0, 0, 0),
    "mlp": (2, 2, 2, 2),
    "raw_parameters": (1, 1, 1, 1),
    "permutation": (0, 1, 1),
    "low_rank": (1, 1, 2, 1),
    "misaligned_sums": (3, 3, 3, 3),
    "outer_product": (0, 0, 1),
    "two_heads": (1, 1, 1, 1),
}
"""For each model with a free width, how many families of each morphism say what they do; none of pairs in two."""

LINEAR: Mapping[str, list[str]] = {
    "densenet": ["w3"],
    "mobilenet": ["w2"],
    "shufflenet": ["w4"],
    "unet": ["w2", "w4"],
    "swin": ["w1"],
    "broadcast_mask": ["w0"],
    "split_cascade": ["w0", "w1", "w2", "w3"],
    "gpt": ["w3"],
    "gpt_tied": ["w3"],
    "grouped_query_attention": ["w4"],
    "lstm": ["w0"],
    "raw_parameters": ["w0"],
    "low_rank": ["w0"],
    "misaligned_sums": ["w0", "w1", "w2"],
}
"""Widths between which and their ends all is linear: two halves with opposite θ add up to the unit they are of."""

UNTOUCHED: Mapping[tuple[str, str], list[str]] = {("widen", "shufflenet"): ["w2"]}
"""Widths of which a value is cut into parts, the first of which stays as it is."""

RECURRENT = "the units of a recurrent net act on each other from step to step"
MATCHED = "two activations are multiplied along it"
ON_TWO_AXES = "a tensor has it on two axes, so fresh units act on each other"
TWICE = "a value has two axes of it, so its units cannot be told apart"
NOWHERE = "it is nowhere summed over against an activation"
LAYER_NORM, GROUP_NORM, MEAN = (
    f"{over} runs over it, so all its units must repeat equally" for over in ("a layer norm", "a group norm", "a mean")
)

MISSED: Mapping[tuple[str, str], list[str]] = {
    ("split", "gpt"): [MATCHED],
    ("split", "gpt_tied"): [MATCHED],
    ("split", "grouped_query_attention"): [MATCHED],
    ("split", "lstm"): [RECURRENT],
    ("split", "gru"): [RECURRENT],
    ("split", "permutation"): ["no trainable weight makes its units"],
    ("split", "low_rank"): [NOWHERE],
    ("split", "outer_product"): [TWICE],
    ("prune", "vit"): [LAYER_NORM],
    ("prune", "swin"): [LAYER_NORM],
    ("prune", "weight_standardisation"): [GROUP_NORM, MEAN],
    ("prune", "gpt"): [LAYER_NORM],
    ("prune", "gpt_tied"): [LAYER_NORM],
    ("prune", "grouped_query_attention"): [MEAN],
    ("prune", "lstm"): [RECURRENT],
    ("prune", "gru"): [RECURRENT],
    ("prune", "low_rank"): [NOWHERE],
    ("prune", "outer_product"): [TWICE],
    ("widen", "lstm"): [ON_TWO_AXES],
    ("widen", "gru"): [ON_TWO_AXES],
    ("merge", "gpt"): [MATCHED],
    ("merge", "gpt_tied"): [MATCHED],
    ("merge", "grouped_query_attention"): [MATCHED],
    ("merge", "lstm"): [RECURRENT],
    ("merge", "gru"): [RECURRENT],
    ("merge", "low_rank"): [NOWHERE],
}
"""For each morphism and model, why the other families do not say what they do."""

CASES = {(m, name): count for name, counts in EXACT.items() for m, count in zip(MORPHISMS, counts, strict=False)}
"""How many families say what they do, for each morphism and model."""


def families(morphism: UnitMorphism, graph: Graph) -> tuple[list[tuple[Site, Perturbation]], list[str]]:
    """Return the families that say what they do, and why the others do not."""
    found = [(site, morphism.perturbation(graph, site)) for site in morphism.sites(graph)]
    known = [(site, perturbation) for site, perturbation in found if not isinstance(perturbation, Miss)]
    return known, sorted(miss.reason for _, miss in found if isinstance(miss, Miss))


def without(graph: Graph, value: Value, tensor: Tensor, removed: UnitMorphism, unit: int) -> Tensor:
    """Return a value less what belongs to a unit of a width in it."""
    widths = infer_widths(graph)
    atom = widths[removed.width].atom
    for axis, term in enumerate(widths.axes[value]):
        if occurrences(term, atom):
            tensor = tensor.index_select(axis, (unit_index(term, atom) != unit).nonzero().flatten())
    return tensor


def assert_exact(
    graph: Graph, inputs: Sequence[Tensor], morphism: UnitMorphism, known: Sequence[tuple[Site, Perturbation]]
) -> list[str]:
    """Compare families with what their members do, and return the labels of those that change nothing."""
    before = evaluate(graph, inputs)
    still: list[str] = []
    for site, perturbation in known:
        theta = {key: torch.randn_like(t) for key, t in perturbation.initial_theta(before, 1).items()}
        deltas = perturbation.delta(before, theta)
        first = min(deltas, key=lambda edge: graph.order.index(edge.node))
        delta, members = deltas[first], perturbation.edges[first]
        member = largest_member(delta, members)
        chosen = site.members[member]
        assert isinstance(chosen, UnitMorphism)
        after = evaluate(apply_together(graph, [(chosen, theta or None)]), inputs)
        end = Value(first.node)
        if isinstance(first, Value):
            expected = before[first] + delta
        else:
            shape = [-1 if d == members.axis else 1 for d in range(delta.dim())]
            shifted = delta * (members.index == member).reshape(shape)
            node = graph.node(first.node)
            (value,) = [v for use, v in node.operands() if use == first]
            changed = {**before, value: before[value] + shifted}
            expected = call(node, changed.__getitem__)[0]
        if relative_difference([expected], [before[end]]) < 1e-9:
            still.append(site.label)
        if isinstance(morphism, Prune):
            expected = without(graph, end, expected, chosen, member)
        assert after[end].shape == expected.shape
        assert relative_difference([after[end]], [expected]) < 1e-9, f"{morphism.name} {site.label}"
    return still


def test_every_model_is_listed() -> None:
    assert sorted([*EXACT, *FROZEN]) == sorted(ZOO)


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_models_without_a_free_width_have_no_families(name: str) -> None:
    graph = graph_of(name)
    assert infer_widths(graph).free == ()
    assert [site for morphism in MORPHISMS for site in morphism.sites(graph)] == []


@pytest.mark.parametrize(("morphism", "name"), [case for case, count in CASES.items() if count], ids=str_of)
def test_a_perturbation_is_the_exact_change_where_the_region_ends(name: str, morphism: UnitMorphism) -> None:
    graph, inputs = randomised(name)
    known, missed = families(morphism, graph)
    assert len(known) == CASES[morphism, name]
    assert missed == MISSED.get((morphism.name, name), [])
    still = assert_exact(graph, inputs, morphism, known)
    assert still == (LINEAR.get(name, []) if isinstance(morphism, Split) else UNTOUCHED.get((morphism.name, name), []))


@pytest.mark.parametrize(("morphism", "name"), [case for case, count in CASES.items() if not count], ids=str_of)
def test_where_no_family_says_what_it_does_each_says_why(name: str, morphism: UnitMorphism) -> None:
    graph, _ = randomised(name)
    known, missed = families(morphism, graph)
    assert known == []
    assert missed == MISSED[morphism.name, name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("permutation", "an index tensor or a mask has it, whose numbers have no mean"),
        ("outer_product", "two factors of an axis of a tensor have it"),
    ],
)
def test_units_that_have_no_mean_are_in_no_family_of_pairs(name: str, reason: str) -> None:
    graph, _ = randomised(name)
    (width,) = infer_widths(graph)
    assert list(Merge().sites(graph)) == []
    assert Merge(width.name, (0, 1)).match(graph) == Miss(reason, ANY)


class Same(nn.Module):
    """Convolutions whose padding is `same`, which is another overload of the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.norm(self.first(x)).relu())
        return y.mean((2, 3))


@pytest.mark.parametrize("morphism", MORPHISMS, ids=str_of)
def test_every_overload_of_a_convolution_is_known_to_be_linear(morphism: UnitMorphism) -> None:
    x = torch.randn(3, 2, 6, 6)
    graph = randomise(trace(Same(), (x,)).to(torch.float64))
    assert {n.op for n in graph.calls if "conv" in n.op} == {"aten.conv2d.padding"}
    known, missed = families(morphism, graph)
    assert len(known) == 1 and missed == []
    assert assert_exact(graph, [x.double()], morphism, known) == []


def test_theta_is_added_with_opposite_signs_to_the_children() -> None:
    graph, _ = randomised("vgg")
    site = next(iter(Split().sites(graph)))
    perturbation = Split().perturbation(graph, site)
    assert not isinstance(perturbation, Miss)
    weight = next(iter(by_node(perturbation.theta)))
    theta = torch.randn_like(graph.tensors[weight])
    member = site.members[1]
    assert isinstance(member, Split)
    new, old = apply_together(graph, [(member, {weight: theta})]).tensors[weight], graph.tensors[weight]
    assert torch.allclose(new[1], old[1] + theta[1], rtol=1e-12)
    assert torch.allclose(new[len(old)], old[1] - theta[1], rtol=1e-12)
    assert torch.equal(new[0], old[0])
