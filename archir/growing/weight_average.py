"""The moving average of the weights of a network that is trained and grown."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from archir.errors import GrowError, suggest
from archir.growing.shards import shared_out_like, whole
from archir.ir.graph import Patch
from archir.ir.tensor_map import TensorMap

PREFIX = "ema/"
"""What the names of averaged weights begin with in a checkpoint."""

Weights = dict[str, torch.Tensor]
"""Trainable parameters by name, tied ones once."""


def weights_of(module: nn.Module) -> Weights:
    """Return a copy of the trainable parameters of a module."""
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def follow(average: Weights, module: nn.Module, step: int, decay: float) -> None:
    """Move an average towards the weights of a module, in place.

    With `d = min(decay, (1 + step) / (10 + step))`, so that the first weights are soon forgotten, the average becomes
    `d average + (1 - d) weights`.

    Args:
        average: the average.
        module: the module, after a step.
        step: the number of that step, from 0.
        decay: largest part of the average that stays, below 1.

    Source: Polyak and Juditsky (1992); the ramp is that of TensorFlow's ExponentialMovingAverage.
    """
    kept = min(decay, (1 + step) / (10 + step))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            average[name].lerp_(parameter.detach(), 1 - kept)


def carry_average(average: Weights, rewriting: Patch, weights: Weights) -> Weights:
    """Return the average of the weights after a rewriting of them.

    What separates it from the weights goes through the same maps as they do, and is added to what they have become.
    So copies of units hold what their average would be had they been there from the first step, what a rewrite adds
    to the weights is added to the average, and what is new begins as it is. One tensor of which processes hold shards
    is gathered after another.

    Args:
        average: the average before.
        rewriting: how the weights were rewritten; its graphs hold those of the last step, before and after.
        weights: what they have become, by name; these tensors are written into.

    Source: ours.
    """
    before, after = rewriting.before, rewriting.after
    old = {before.by_name[name].id: tensor for name, tensor in average.items()}
    for name, tensor in weights.items():
        node = after.by_name[name].id
        by = rewriting.maps.get(node, TensorMap())
        if node in old and by is not None:
            change = by.change(whole(old[node]) - before.tensors[node].to(old[node].device))
            tensor += shared_out_like(change, tensor)
    return weights


def restore_average(tensors: Mapping[str, torch.Tensor], module: nn.Module) -> Weights:
    """Return the average that a state holds, which may come from a file.

    Args:
        tensors: the average by `ema/name`.
        module: the module it is the average of.

    Raises:
        GrowError: a name, a shape or an element type is not that of a weight, one is missing, or a number is not
            finite.
    """
    weights = weights_of(module)
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name not in weights:
            raise GrowError(f"the average {key!r} belongs to no parameter", hint=suggest(name, weights))
        like = weights[name]
        if tensor.shape != like.shape:
            raise GrowError(f"the average {key!r} is {list(tensor.shape)}, not {list(like.shape)}")
        if tensor.dtype != like.dtype or not bool(torch.isfinite(tensor).all()):
            raise GrowError(f"the average {key!r} is not of finite numbers of type {like.dtype}")
        weights[name] = shared_out_like(tensor.to(like.device, copy=True), like)
    if missing := [name for name in weights if PREFIX + name not in tensors]:
        raise GrowError(f"the averages of {', '.join(missing[:5])} are missing")
    return weights
