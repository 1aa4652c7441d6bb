"""Compares what was emitted with the graph it was emitted from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archir.errors import EmitError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs, symbol_sizes

BATCHES = (2, 3)
"""Batch sizes that are tried."""


@dataclass(frozen=True)
class Emitted:
    """A file that was written and checked.

    Attributes:
        path: the file.
        difference: largest absolute difference from the outputs of the graph on random inputs.
    """

    path: Path
    difference: float


def tensors_in(result: object) -> list[torch.Tensor]:
    """Return the tensors of a nested result in order, numbers as tensors of no axes."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [t for value in result.values() for t in tensors_in(value)]
    if isinstance(result, tuple | list):
        return [t for value in result for t in tensors_in(value)]
    return [torch.tensor(result)] if isinstance(result, int | float) else []


def compare(
    graph: Graph, run: Callable[[tuple[Any, ...], dict[str, Any]], object], tolerance: float, what: str, seed: int = 0
) -> float:
    """Return the largest absolute difference between the outputs of a graph and of what was made from it, in eval mode.

    Args:
        graph: the graph.
        run: computes the outputs from positional and keyword arguments.
        tolerance: largest difference allowed, relative to the largest output of the graph where that exceeds 1.
        what: what is compared, for the message.
        seed: seed of the random inputs.

    Raises:
        EmitError: the outputs differ in number, shape, or by more than `tolerance`.
    """
    module = graph.module().eval()
    worst = 0.0
    for batch in BATCHES if symbol_sizes(graph, 1) else BATCHES[:1]:
        args, kwargs = random_inputs(graph, batch, seed)
        with torch.no_grad():
            wanted, found = tensors_in(module(*args, **kwargs)), tensors_in(run(args, kwargs))
        shapes = [[list(t.shape) for t in part] for part in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise EmitError(f"{what} returns shapes {shapes[1]} instead of {shapes[0]}", where=f"batch size {batch}")
        worst = max([worst, *_differences(wanted, found, tolerance, what)])
    return worst


def _differences(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor], limit: float, what: str) -> list[float]:
    differences: list[float] = []
    for i, (one, other) in enumerate(zip(wanted, found, strict=True)):
        wide = torch.complex128 if one.is_complex() else torch.float64
        same = (one == other) | (torch.isnan(one) & torch.isnan(other))
        gap = torch.where(same, 0.0, (one.to(wide) - other.to(wide)).abs())
        worst = float(gap.max()) if gap.numel() else 0.0
        finite = one.to(wide).abs()[torch.isfinite(one)]
        scale = max(1.0, float(finite.max()) if finite.numel() else 1.0)
        if not worst <= limit * scale:
            raise EmitError(
                f"{what} computes something else: the largest difference of output {i} is {worst:.3g}",
                why=f"at most {limit * scale:.3g} is allowed",
            )
        differences.append(worst)
    return differences
