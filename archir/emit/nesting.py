"""Takes arguments and results of a program out of their nesting, and puts them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archir.ir.graph import Graph
from archir.ir.node import Value, build, flatten


def tensors_in(result: object) -> list[torch.Tensor]:
    """Return the tensors of a nested result in order, numbers as tensors of no axes."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [t for value in result.values() for t in tensors_in(value)]
    if isinstance(result, tuple | list):
        return [t for value in result for t in tensors_in(value)]
    return [torch.tensor(result)] if isinstance(result, int | float) else []


def given(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return what the arguments of a call give to each input of the graph, in the order of the inputs."""
    signature = graph.signature
    found = [*flatten(signature.args, args), *flatten(signature.kwargs, kwargs)]
    values = {leaf: value for leaf, value in found if isinstance(leaf, int)}
    return [values[i] for i in sorted(values)]


def nested(graph: Graph, values: Mapping[Value, object]) -> Any:
    """Return computed values in the nesting of the model's result."""
    outputs = graph.output.arguments.values()
    return build(graph.signature.result, [values[o] if isinstance(o, Value) else o for o in outputs])
