"""Torch-Pruning 1.6.1: a network pruned by its magnitude, Taylor or Hessian importance, at once over all layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from archir.errors import GrowError
from archir.growing.examples import Examples
from archir.scoring.losses import Loss

IMPORTANCES: Mapping[str, str] = MappingProxyType(
    {
        "magnitude": "GroupMagnitudeImportance",
        "taylor": "GroupTaylorImportance",
        "hessian": "GroupHessianImportance",
    }
)
"""The names of its importances."""

TIES = 1e-6
"""How much is added to importances at random, as a part of the largest, so that units of none do not go all at once."""

EACH = 256
"""Examples whose own gradients are squared."""

HALVINGS = 9
"""How often the range that the pruning ratio is in is halved."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A network with what Torch-Pruning scores it by: gradients of the loss, and mean squares of those of examples.

    Attributes:
        net: the network.
        gradients: by parameter name.
        squares: by parameter name.
    """

    net: nn.Module
    gradients: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]


def score(net: nn.Module, seen: Examples, loss: Loss) -> Scored:
    """Return a network with its gradients on some examples, and the squares of those of the first `EACH` of these."""
    x, y = seen.inputs, seen.targets
    assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
    net.eval()
    names, weights = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(net(x), y), weights)
    squares = [torch.zeros_like(p) for p in weights]
    each = min(EACH, len(seen))
    for i in range(each):
        found = torch.autograd.grad(loss(net(x[i : i + 1]), y[i : i + 1]), weights)
        for total, g in zip(squares, found, strict=True):
            total += g.square() / each
    return Scored(net, dict(zip(names, gradients, strict=True)), dict(zip(names, squares, strict=True)))


def prune_until(
    scored: Scored, example: torch.Tensor, importance: str, fits: Callable[[nn.Module], bool], ratio: float = 0.9
) -> nn.Module:
    """Return what Torch-Pruning leaves at the smallest pruning ratio at which it fits.

    Args:
        scored: the network, which stays as it is.
        example: inputs that it takes.
        importance: one of `IMPORTANCES`.
        fits: says whether a network is small enough.
        ratio: the largest ratio that is tried.

    Raises:
        GrowError: nothing fits, or the library fails.
    """
    low, high, best = 0.0, ratio, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        small = _pruned(scored, example, importance, middle)
        if fits(small):
            high, best = middle, small
        else:
            low = middle
    if best is None:
        raise GrowError(f"no network pruned by {importance} is small enough")
    return best


def _pruned(scored: Scored, example: torch.Tensor, importance: str, ratio: float) -> nn.Module:
    library = import_module("torch_pruning")
    small, scorer = copy.deepcopy(scored.net), getattr(library.importance, IMPORTANCES[importance])()
    for name, parameter in small.named_parameters():
        parameter.grad = scored.gradients[name].clone()
        if importance == "hessian":  # what its own `accumulate_grad` keeps is that of the last example
            scorer._accu_grad[parameter], scorer._counter[parameter] = scored.squares[name].clone(), 1
    head = [m for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = library.pruner.BasePruner(
                small,
                example,
                _Untied(scorer),
                global_pruning=True,
                pruning_ratio=ratio,
                max_pruning_ratio=0.95,
                ignored_layers=[head],
            )
            pruner.step()
    except Exception as error:  # whatever it is, the model is one the library cannot do
        raise GrowError("Torch-Pruning fails", why=f"{type(error).__name__}: {error}") from error
    return small


class _Untied:
    """An importance of groups of units no two of which have the same: the threshold takes all that are not above it."""

    def __init__(self, importance: Callable[..., torch.Tensor | None]) -> None:
        self._importance, self._generator = importance, torch.Generator().manual_seed(0)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        found = self._importance(*args, **kwargs)
        if found is None:
            return None
        least = found.max().clamp(min=torch.finfo(found.dtype).tiny) * TIES
        return found + least * torch.rand(found.shape, generator=self._generator).to(found)
