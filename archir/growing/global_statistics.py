"""Batch normalisation by the statistics of the batch that several processes have parts of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from archir.ir import ops
from archir.ir.operators.normalisation import BATCH_NORM
from archir.scoring.processes import Processes, exchanging

BATCH_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    **dict.fromkeys((torch.batch_norm, ops.function(BATCH_NORM)), ops.schema(BATCH_NORM).names),
}
"""The functions that normalise batches, and the names of their arguments in order."""


def global_statistics(processes: Processes) -> AbstractContextManager[object]:
    """Normalise, within the block, by the mean and the variance over the parts of all processes.

    Works on calls of `batch_norm` that take the statistics of the batch, whatever module makes them, and is seen by
    gradients. Running statistics follow those of the whole batch. `SyncBatchNorm` does so on GPUs alone, in modules of
    its own.
    """
    return nullcontext() if processes.group is None else _GlobalStatistics(processes)


class _GlobalStatistics(TorchFunctionMode):
    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = BATCH_NORMS.get(func)
        given = {} if names is None else dict(zip(names, args, strict=False)) | (kwargs or {})
        if not given.get("training", False):
            return func(*args, **(kwargs or {}))
        return _normalised(
            self._processes,
            given["input"],
            *(given.get(name) for name in ("running_mean", "running_var", "weight", "bias")),
            momentum=given.get("momentum", 0.1),
            eps=given.get("eps", 1e-5),
        )


def _normalised(
    processes: Processes,
    given: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Return what `F.batch_norm` would give for the parts of all processes side by side, of which this is one.

    The mean first, then the squares of what is left without it, so that nothing cancels.
    """
    x = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
    channels, shape = x.shape[1], (1, -1, *[1] * (x.dim() - 2))
    axes = [axis for axis in range(x.dim()) if axis != 1]
    count = x.new_full((1,), x.numel() // max(channels, 1), dtype=torch.float64)
    sums, every = torch.split(summed(torch.cat([x.sum(axes).double(), count]), processes), [channels, 1])
    mean = (sums / every).to(x.dtype)
    centred = x - mean.reshape(shape)
    squares = summed(centred.square().sum(axes).double(), processes)
    variance = (squares / every).to(x.dtype)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = squares / (every - 1)
            running_mean += momentum * (mean - running_mean).to(running_mean)
            running_var += momentum * (unbiased.to(running_var) - running_var)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    result: torch.Tensor = centred * scale.reshape(shape)
    return (result if bias is None else result + bias.reshape(shape)).to(given.dtype)


def summed(tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Return the sum over all processes, whose losses are summed: what one gives counts in those of all."""
    found: torch.Tensor = _Sum.apply(tensor, processes)  # type: ignore[no-untyped-call]
    return found


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
        ctx.processes = processes
        return _reduced(tensor, processes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _reduced(gradients[0], ctx.processes), None


def _reduced(tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
    found = tensor.clone(memory_format=torch.contiguous_format)
    with exchanging():
        dist.all_reduce(found, group=processes.group)
    return found
