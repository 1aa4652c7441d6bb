"""What every morphism that is no change of a width has to keep, whatever the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from archir.ir.execute import call
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Use, Value
from archir.rewrite.compose import Compose
from archir.rewrite.morphism import Morphism, Site, WidthMorphism
from archir.rewrite.perturbation import Edge
from archir.testing import evaluate
from passes.catalog import PASSES
from tests.models.captured import randomised

SPLICES: tuple[Morphism, ...] = tuple(
    kind()
    for kind in PASSES.values()
    if issubclass(kind, Morphism) and not issubclass(kind, WidthMorphism) and kind is not Compose
)
"""Every morphism that is no change of a width, with default options."""


_IMAGES = [
    "vgg",
    "resnet",
    "resnet20",
    "densenet",
    "mobilenet",
    "shufflenet",
    "unet",
    "vit",
    "siamese",
    "dilated_pyramid",
    "broadcast_mask",
    "split_cascade",
    "swin",
    "weight_standardisation",
    "decoder",
]
_TOKENS = ["gpt", "gpt_tied", "grouped_query_attention", "rotary_embedding", "encoder"]
_LAYERS = ["flip_cumsum", "misaligned_sums", "mlp", "shared_module", "two_heads"]
_LINEAR = ["lstm", *_LAYERS, "nested", "permutation", "low_rank", "outer_product", "sorted_units"]

PLACES: Mapping[str, list[str]] = {
    "add-bias": ["swin", "gpt", "gpt_tied"],
    "blend-activation": [*_IMAGES[:11], "decoder", *_TOKENS, *_LAYERS[2:]],
    "deepen": [*_IMAGES, *_TOKENS, *_LINEAR],
    "dilate": ["dilated_pyramid"],
    "duplicate-block": ["resnet", "resnet20"],
    "enlarge-kernel": _IMAGES,
    "mixture-branch": ["vgg", "vit", "gpt", "gpt_tied", "grouped_query_attention", "encoder", *_LAYERS[2:]],
    "parallel-branch": [*_IMAGES, *_TOKENS, *_LINEAR, "gru", "shape_branch"],
    "remove-block": ["resnet", "resnet20", "encoder"],
    "residual-branch": [*_IMAGES, *_TOKENS, *_LINEAR],
    "self-attention": [*_IMAGES, *_TOKENS, "lstm"],
    "shrink-kernel": [n for n in _IMAGES if n not in ("vit", "broadcast_mask", "swin", "weight_standardisation")],
    "skip-connection": [*_IMAGES[:12], *_TOKENS, *_LAYERS],
    "squeeze-excite": [*_IMAGES, *_TOKENS, *_LINEAR],
}
"""The models of the zoo in which each splice has sites."""


@cache
def capture(name: str) -> tuple[Graph, tuple[Tensor, ...], Mapping[Value, Any]]:
    """Return the randomised graph of a model of the zoo in float64, inputs for it, and all its values on them."""
    graph, inputs = randomised(name)
    return graph, inputs, evaluate(graph, inputs)


def some_sites(morphism: Morphism, graph: Graph, most: int) -> list[Site]:
    """Return a few families of a morphism, spread evenly over the graph."""
    found = list(morphism.sites(graph))
    return found[:: max(1, -(-len(found) // most))]


def outputs_of(graph: Graph, values: Mapping[Value, Any]) -> list[Tensor]:
    """Return the real outputs of a graph among its values."""
    found = [values[v] for _, v in graph.output.operands()]
    return [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def inject(graph: Graph, before: Mapping[Value, Any], deltas: Mapping[Edge, Tensor]) -> list[Tensor]:
    """Return the real outputs of a graph when Δ is added on some edges."""
    values: dict[Value, Any] = {v: t for v, t in before.items() if graph.node(v.node).op == PARAMETER}
    inputs = {Value(n.id) for n in graph.inputs}
    values |= {v: before[v] + deltas[v] if v in deltas else before[v] for v in inputs}

    def operand(use: Use, value: Value) -> Any:
        return values[value] + deltas[use] if use in deltas else values[value]

    for node in graph.calls:
        changed = {v: operand(u, v) for u, v in node.operands() if u in deltas}
        assert all([v for _, v in node.operands()].count(v) == 1 for v in changed)
        for i, result in enumerate(call(node, {**values, **changed}.__getitem__)):
            value = Value(node.id, i)
            values[value] = result + deltas[value] if value in deltas else result
    found = [operand(use, value) for use, value in graph.output.operands()]
    return [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]
