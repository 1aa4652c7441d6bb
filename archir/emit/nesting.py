"""Takes arguments and results of a program out of their nesting, and puts them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archir.ir.graph import Graph
from archir.ir.node import Constant, Leaf, Tree, Value


def tensors_in(result: object) -> list[torch.Tensor]:
    """Return the tensors of a nested result in order, numbers as tensors of no axes."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [t for value in result.values() for t in tensors_in(value)]
    if isinstance(result, tuple | list):
        return [t for value in result for t in tensors_in(value)]
    return [torch.tensor(result)] if isinstance(result, int | float) else []


def leaves(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return what the arguments of a call give to each input of the graph, in the order of the inputs."""
    found: dict[int, Any] = {}

    def visit(leaf: Leaf, value: Any) -> None:
        if isinstance(leaf, int):
            found[leaf] = value
        elif isinstance(leaf, Tree):
            for key, child in zip(leaf.keys if leaf.kind == "dict" else range(len(value)), leaf.children, strict=True):
                visit(child, value[key])

    visit(graph.signature.args, args)
    visit(graph.signature.kwargs, kwargs)
    return [found[i] for i in sorted(found)]


def nested(graph: Graph, values: Mapping[Value, object]) -> Any:
    """Return computed values in the nesting of the model's result, in lists where it has tuples or dicts."""
    outputs = list(graph.output.arguments.values())

    def build(leaf: Leaf) -> Any:
        if isinstance(leaf, Constant):
            return leaf.value
        if isinstance(leaf, Tree):
            return [build(child) for child in leaf.children]
        output = outputs[leaf]
        return values[output] if isinstance(output, Value) else output

    return build(graph.signature.result)
