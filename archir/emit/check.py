"""Compares what was emitted with the graph it was emitted from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archir.emit.nesting import leaves, tensors_in
from archir.emit.undefined import find_undefined, gap
from archir.errors import EmitError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs, symbol_sizes

__all__ = ["Agreement", "Emitted", "agree", "compare", "tensors_in"]

BATCHES = (2, 3)
"""Batch sizes that are tried."""

SURE = 0.1
"""An element that undefined rows change by less than this share of what is allowed counts as defined."""

Run = Callable[[tuple[Any, ...], dict[str, Any]], object]
"""Computes the outputs from positional and keyword arguments."""


@dataclass(frozen=True)
class Agreement:
    """What was found when outputs were compared.

    Attributes:
        difference: largest absolute difference of the elements that were compared.
        compared: number of output elements that were compared, over all inputs tried.
        undefined: number of output elements that were not, since the graph does not define them.
        why: what leaves them undefined; empty if nothing does.
    """

    difference: float
    compared: int = 0
    undefined: int = 0
    why: str = ""


@dataclass(frozen=True)
class Emitted:
    """A file that was written and checked.

    Attributes:
        path: the file.
        difference: largest absolute difference from the outputs of the graph on random inputs.
        undefined: number of output elements that were not compared, since the graph does not define them, such as
            those at positions that attend to nothing; 0 where all agree.
        why: what leaves them undefined; empty if nothing does.
    """

    path: Path
    difference: float
    undefined: int = 0
    why: str = ""

    @property
    def verdict(self) -> str:
        """What the comparison found, in a line."""
        found = f"largest difference from the graph {self.difference:.3g}"
        return f"{found}; {self.undefined} output elements not compared: {self.why}" if self.undefined else found


def compare(graph: Graph, run: Run, tolerance: float, what: str, seed: int = 0) -> float:
    """Return the largest absolute difference between the outputs of a graph and of what was made from it, in eval mode.

    Nothing is left out: whoever runs the same operators gets the same, also where they are not defined.

    Args:
        graph: the graph.
        run: computes the outputs from positional and keyword arguments.
        tolerance: largest difference allowed, relative to the largest output of the graph where that exceeds 1.
        what: what is compared, for the message.
        seed: seed of the random inputs.

    Raises:
        EmitError: the outputs differ in number, shape, or by more than `tolerance`.
    """
    found = agree(graph, run, tolerance, what, seed)
    if found.undefined:
        raise EmitError(f"{what} computes something else in {found.undefined} output elements", why=found.why)
    return found.difference


def agree(graph: Graph, run: Run, tolerance: float, what: str, seed: int = 0) -> Agreement:
    """Compare the outputs of a graph with those of what was made from it, in eval mode, where they are defined.

    Where all outputs agree, all are compared. Where some do not, those that depend on what the graph does not define
    (`archir.emit.undefined`) are set aside, and all others are held to the tolerance.

    Args:
        graph: the graph.
        run: computes the outputs from positional and keyword arguments.
        tolerance: largest difference allowed, relative to the largest output of the graph where that exceeds 1.
        what: what is compared, for the message.
        seed: seed of the random inputs.

    Raises:
        EmitError: the outputs differ in number, shape, or by more than `tolerance` where they are defined; or an
            output has no element that is defined.
    """
    module = graph.module().eval()
    trials = [_try(graph, module, run, tolerance, what, sizes, seed) for sizes in _sizes(graph)]
    undefined = [sum(int(t.undefined[i].sum()) for t in trials) for i in range(len(trials[0].undefined))]
    elements = [sum(t.undefined[i].numel() for t in trials) for i in range(len(undefined))]
    why = next((t.why for t in trials if t.why), "")
    for i, (number, of) in enumerate(zip(undefined, elements, strict=True)):
        if number == of > 0:
            raise EmitError(
                f"{what} differs from the graph, and nothing of output {i} is defined that could be compared", why=why
            )
    return Agreement(
        difference=max((t.difference for t in trials), default=0.0),
        compared=sum(elements) - sum(undefined),
        undefined=sum(undefined),
        why=why,
    )


def batches(graph: Graph) -> tuple[int, ...]:
    """Return the batch sizes a graph is tried with; only one where none of its inputs has such an axis."""
    return BATCHES if symbol_sizes(graph, 1) else BATCHES[:1]


def _sizes(graph: Graph) -> list[dict[str, int]]:
    """Return the sizes a graph is tried with: these batch sizes, or others close to them that its guards allow."""
    tried: list[dict[str, int]] = []
    for batch in batches(graph):
        tried.append(symbol_sizes(graph, batch, tried))
    return tried


@dataclass(frozen=True)
class _Trial:
    """What was found for one batch: for each output which elements are undefined, and the difference of the others."""

    difference: float
    undefined: Sequence[Tensor]
    why: str = ""


def _try(
    graph: Graph, module: torch.nn.Module, run: Run, tolerance: float, what: str, sizes: dict[str, int], seed: int
) -> _Trial:
    args, kwargs = random_inputs(graph, seed=seed, sizes=sizes)
    with torch.no_grad():
        wanted, found = tensors_in(module(*args, **kwargs)), tensors_in(run(args, kwargs))
    shapes = [[list(t.shape) for t in part] for part in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise EmitError(f"{what} returns shapes {shapes[1]} instead of {shapes[0]}", where=_told(sizes))
    limits = [tolerance * _scale(t) for t in wanted]
    gaps = [gap(one, other) for one, other in zip(wanted, found, strict=True)]
    undefined = [torch.zeros(t.shape, dtype=torch.bool) for t in gaps]
    why = ""
    if any(_largest(g) > limit for g, limit in zip(gaps, limits, strict=True)):
        aside = find_undefined(graph, leaves(graph, args, kwargs), [SURE * limit for limit in limits])
        undefined, why = list(aside.elements), aside.why
        gaps = [torch.where(u, 0.0, g) for g, u in zip(gaps, undefined, strict=True)]
    for i, (found_gap, limit) in enumerate(zip(gaps, limits, strict=True)):
        if not _largest(found_gap) <= limit:
            raise EmitError(
                f"{what} computes something else: the largest difference of output {i} is {_largest(found_gap):.3g}",
                where=_told(sizes),
                why=f"at most {limit:.3g} is allowed",
            )
    return _Trial(max(map(_largest, gaps), default=0.0), undefined, why)


def _told(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _largest(gaps: Tensor) -> float:
    return float(gaps.max()) if gaps.numel() else 0.0


def _scale(output: Tensor) -> float:
    """Return the largest finite magnitude in an output, at least 1."""
    wide = torch.complex128 if output.is_complex() else torch.float64
    finite = output.detach().to(wide).abs()[torch.isfinite(output)]
    return max(1.0, float(finite.max()) if finite.numel() else 1.0)
