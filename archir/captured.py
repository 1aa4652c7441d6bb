"""Graphs of the models that users give: a graph as it is, a module captured on an example or on the first batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from archir.errors import CaptureError
from archir.growing.device import device_of
from archir.growing.examples import Split
from archir.growing.input_types import input_types
from archir.growing.reading import each_batch
from archir.growing.unwrapped import check_unwrapped
from archir.ir.axis_names import DynamicAxes
from archir.ir.graph import Graph
from archir.scoring.batches import no_batches
from archir.scoring.pairs import tensor_pair
from archir.scoring.program import Inputs
from archir.scoring.surroundings import without_autocast
from archir.scoring.targets import map_tensors, tensors_of
from frontends.pytorch import trace

Model = nn.Module | Graph
"""A module, or the graph of one."""

B = TypeVar("B")

LEAST = 2
"""The examples of a batch a module is captured on: one alone would be taken for a batch of any size."""


def graph_of(model: Model, example: Inputs | None = None) -> Graph:
    """Return a graph as it is, or that of a module, captured on an example.

    Args:
        model: the graph or the module.
        example: what a module would be called with: a tensor, a tuple of arguments, or a mapping by name.

    Raises:
        CaptureError: it is neither, no example comes with a module, or the module cannot be captured.
        GrowError: the module is wrapped, in `DistributedDataParallel` for one.
    """
    if isinstance(model, Graph):
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(f"a model is an nn.Module or a graph, not a {type(model).__name__}")
    if example is None:
        raise CaptureError(
            f"{type(model).__name__} is a module, and what is asked for is read from a graph",
            hint="trace it first, graph = archir.trace(model, (x,)), or give what it is called with as example=",
        )
    return _traced(model, example)


def graph_on(model: Model, batches: Iterable[B]) -> tuple[Graph, Iterator[B]]:
    """Return a graph as it is, or that of a module, captured on the first examples of the first batch.

    Args:
        model: the graph or the module.
        batches: pairs of inputs and targets, or mappings, see `archir.scoring.pairs.pair_of`.

    Returns:
        The graph, and all of the batches; see `archir.growing.reading.each_batch`.

    Raises:
        CaptureError: it is neither, or cannot be captured.
        GrowError: the module is wrapped, in `DistributedDataParallel` for one; or code of the user's that makes the
            batches fails.
        ScoreError: there are no batches, they cannot be iterated, or the first is neither a pair nor a mapping
            with targets.
    """
    if isinstance(model, Graph) or not isinstance(model, nn.Module):
        return graph_of(model), each_batch(batches)
    rest = each_batch(batches)
    first: Any = next(rest, None)
    if first is None:
        raise no_batches()
    inputs, targets = tensor_pair(first, model.parameters(), input_types(model).keywords)
    return _traced(model, _few(inputs, targets)), chain([first], rest)


def trace_on(model: nn.Module, split: Split, dynamic: DynamicAxes | None = None) -> Graph:
    """Return the graph of a module, captured on the first examples of a split in its element types.

    Args:
        model: the module.
        split: the examples.
        dynamic: the names of axes that are dynamic besides the batch.

    Raises:
        CaptureError: the module cannot be captured, or there are no such axes.
        FileError: the examples cannot be read.
        GrowError: the module is wrapped, or code of the user's that reads them fails.
        ScoreError: they are neither pairs nor mappings with targets.
    """
    return _traced(model, input_types(model)(split.take(slice(0, LEAST))).inputs, dynamic)


def _few(inputs: Any, targets: Any) -> Any:
    """Return the first examples of a batch, or all of it where the first axis of some input does not run over them."""
    sizes = {len(t) if isinstance(t, torch.Tensor) and t.dim() else 0 for _, t in tensors_of((inputs, targets))}
    return map_tensors(lambda t: t[:LEAST], inputs) if len(sizes) == 1 else inputs


def _traced(model: nn.Module, inputs: Inputs, dynamic: DynamicAxes | None = None) -> Graph:
    """Return the graph of a module, captured on inputs that are brought to where it is."""
    check_unwrapped(model)
    device = device_of(model)
    moved = map_tensors(lambda t: t.to(device), inputs)
    with without_autocast():
        if isinstance(moved, torch.Tensor):
            return trace(model, (moved,), dynamic=dynamic)
        if isinstance(moved, Mapping):
            return trace(model, (), moved, dynamic=dynamic)
        return trace(model, tuple(moved), dynamic=dynamic)
