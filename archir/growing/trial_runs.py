"""Runs of a model on random inputs that leave the model and the random generators as they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from archir.growing.device import device_of
from archir.growing.random_state import random_state_kept
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.scoring.targets import map_tensors

BATCHES = (2, 3)
"""The sizes of the batches that are run; a module for batches of other sizes is run on some close to them."""

Shapes = Sequence[tuple[int, ...]]
"""The shapes of what a model returns, in order; `()` for what is no tensor."""


def inputs_for(model: nn.Module, graph: Graph, batch: int) -> tuple[Any, Any]:
    """Return random inputs, positional and by name, where a model is."""
    device = device_of(model)
    found: tuple[Any, Any] = map_tensors(lambda t: t.to(device), random_inputs(graph, batch))
    return found


def results_of(model: nn.Module, graph: Graph, batch: int, *, training: bool) -> list[Any]:
    """Return what a model returns for random inputs, in order.

    It is run on copies of its tensors, without gradients. Its tensors, modes and attributes, and the generators it
    draws from, are as they were afterwards; a list that it appends to is not.

    Args:
        model: the model.
        graph: whose inputs it takes.
        batch: size of the batch.
        training: whether it is run in training mode.
    """
    args, kwargs = inputs_for(model, graph, batch)
    with _left_as_it_was(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told in training
        copies: dict[str, torch.Tensor] = {name: b.clone() for name, b in model.named_buffers()}
        copies |= {n: nn.Parameter(p.clone(), requires_grad=p.requires_grad) for n, p in model.named_parameters()}
        return pytree.tree_leaves(functional_call(model.train(training), copies, args, kwargs))


def trained_shapes(model: nn.Module, graph: Graph) -> list[Shapes]:
    """Return the shapes of what a model returns in training mode, for every size of `BATCHES`; see `results_of`."""
    runs = [results_of(model, graph, batch, training=True) for batch in BATCHES]
    return [[tuple(r.shape) if isinstance(r, torch.Tensor) else () for r in results] for results in runs]


def unlike(before: Sequence[Shapes], after: Sequence[Shapes]) -> str:
    """Say in what the shapes that a model returns differ by more than widths; empty if in nothing.

    A size that does not go with the batch may have become another one; one that does is as it was.

    Args:
        before: what `trained_shapes` found.
        after: what it found with other widths.
    """
    if len(before[0]) != len(after[0]):
        return f"it returned {len(before[0])} values, and returns {len(after[0])}"
    for number in range(len(before[0])):
        was, now = ([shapes[number] for shapes in runs] for runs in (before, after))
        told = f"result {number} was {list(was[0])}, and becomes {list(now[0])}"
        if any(len(one) != len(other) for one, other in zip(was, now, strict=True)):
            return told
        for sizes, others in zip(zip(*was, strict=True), zip(*now, strict=True), strict=True):
            if sizes != others and (len(set(sizes)) > 1 or len(set(others)) > 1):
                return told
    return ""


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Leave attributes and modes of a model, and the generators, as they were; what is random is drawn under a seed."""
    kept = [(part, dict(vars(part))) for part in model.modules()]
    own = [(v, v.get_state()) for _, values in kept for v in values.values() if isinstance(v, torch.Generator)]
    with random_state_kept(device_of(model), 0):
        try:
            yield
        finally:
            for part, values in kept:
                vars(part).clear()
                vars(part).update(values)
            for generator, state in own:
                generator.set_state(state)
