"""Holds what archir says of a net's widths against the net itself, run by plain torch with other weights.

Of the package it uses what is to be checked (the widths with their places, `prune`, the lowered module), and nothing
else: whether units are interchangeable, and what is left without one, is found out by changing the weights of a copy of
the model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.axes.widths import Width
from archir.ir.graph import Graph
from frontends.pytorch import trace
from passes.prune import Prune

TOLERANCE = 1e-9
"""Largest difference, in float64, relative to the largest output."""


def problems_of(
    model: nn.Module, x: Tensor, *, inexact: Collection[str] = ("norm", "reduced"), static_batch: bool = False
) -> list[str]:
    """Return what is wrong with the widths found in a model; nothing if all is well.

    Args:
        model: the model, with one input; it is left as it was.
        x: an example.
        inexact: roles of widths of which a removed unit need not be what zeros in its places are. Those with
            statistics over their units are; so are those that are `matched`, in a model that makes something else of
            zero before it multiplies two activations, or picks what it multiplies by an index.
        static_batch: whether it is for the batch size of the example only.
    """
    model, x = noisy(model), x.double()
    graph = trace(model, (x,), static_batch=static_batch)
    with torch.no_grad():
        right = model(x)
        found = [f"the graph is {error}" for error in _off(graph.module().eval()(x), right)]
        for width in infer_widths(graph):
            tensors = stored(model)
            if all(place.parameter in tensors for place in width.places):  # else it is a constant of the program
                found += [f"{_name(width)} permuted: {error}" for error in _off(permuted(model, width)(x), right)]
                found += [f"{_name(width)} pruned: {e}" for e in _pruned(model, graph, width, x, inexact)]
    return found


def noisy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy in float64 in which nothing is zero or one by chance."""
    model, dice = copy.deepcopy(model).double().eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in stored(model).items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=dice, dtype=tensor.dtype))
            elif tensor.is_floating_point():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=dice, dtype=tensor.dtype))
    return model


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Return the stored tensors of a model by name."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def permuted(model: nn.Module, width: Width) -> nn.Module:
    """Return a copy whose units are in another order: each in the place of the one before it."""
    model = copy.deepcopy(model)
    tensors = stored(model)
    for place in width.places:
        tensor = tensors[place.parameter]
        units = [width.positions(place, [u]) for u in range(width.size)]
        old = tensor.clone()
        for here, there in zip(units, [*units[1:], units[0]], strict=True):
            tensor.index_copy_(place.axis, here, old.index_select(place.axis, there))
    return model


def blanked(model: nn.Module, width: Width, unit: int) -> nn.Module:
    """Return a copy with zeros in all places of a unit."""
    model = copy.deepcopy(model)
    tensors = stored(model)
    for place in width.places:
        tensors[place.parameter].index_fill_(place.axis, width.positions(place, [unit]), 0)
    return model


def _pruned(model: nn.Module, graph: Graph, width: Width, x: Tensor, inexact: Collection[str]) -> list[str]:
    found: list[str] = []
    for unit in {0, width.size - 1}:
        left = Prune(width.name, (unit,)).apply(graph).module().eval()(x)
        right = left if width.roles & set(inexact) else blanked(model, width, unit)(x)
        found += _off(left, right)
    return found


def _off(new: Tensor, right: Tensor) -> list[str]:
    error = float((new - right).abs().max() / right.abs().max())
    return [] if error <= TOLERANCE else [f"off by {error:.2g}"]


def _name(width: Width) -> str:
    places: Sequence[str] = [f"{place.parameter} axis {place.axis}" for place in width.places]
    return f"{width.name} ({', '.join(places)})"
