"""Recalibrates the batch statistics of a module: averages them anew over training batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from archir.errors import GrowError, NotFiniteError
from archir.growing.global_statistics import BATCH_NORMS, global_statistics
from archir.growing.ranks import in_step
from archir.growing.training import Batch, call, evaluating
from archir.scoring.processes import ALONE, Processes


def recalibrate(module: nn.Module, batches: Iterable[Batch], *, processes: Processes = ALONE) -> None:
    """Set the running statistics of every batch normalisation to their averages over batches.

    Each batch counts the same; everything else runs in evaluation mode, dropout included. Works on calls
    of `batch_norm`, whatever module makes them. The module's mode is left as it was.

    Args:
        module: what is recalibrated.
        batches: pairs of inputs and targets, of which only the inputs are used; of several processes each gives its
            parts.
        processes: those that share the batches out among them.

    Raises:
        NotFiniteError: a statistic is not finite.
        GrowError: the model rejects a batch, or there are no batches.

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima (2018), section 3.2.
    """
    statistics = _Recalibration()
    empty = True
    # The last of the modes is asked first: it turns to statistics of the batch, the other to those of the whole one.
    with evaluating(module), torch.no_grad(), global_statistics(processes), statistics:
        for inputs, _ in in_step(processes, batches):
            call(module, inputs)
            empty = False
    if empty:
        raise GrowError("there are no batches to recalibrate on")
    if not all(bool(torch.isfinite(t).all()) for _, *buffers in statistics.seen.values() for t in buffers):
        raise NotFiniteError(
            "batch statistics are not finite", hint="the weights or the inputs are not: check these first"
        )


class _Recalibration(TorchFunctionMode):
    """Makes every batch normalisation that runs on stored statistics replace them by cumulative averages."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = BATCH_NORMS.get(func)
        if names is None:
            return func(*args, **(kwargs or {}))
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        mean, variance = given["running_mean"], given["running_var"]
        if mean is not None and variance is not None and not given.get("training", False):
            count = self.seen[id(mean)][0] + 1 if id(mean) in self.seen else 1
            self.seen[id(mean)] = count, mean, variance
            given |= {"training": True, "momentum": 1 / count}
        return func(**given) if func is F.batch_norm else func(*(given[name] for name in names))
