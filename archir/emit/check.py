"""Compares what was emitted with the graph it was emitted from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archir.emit.nesting import given, tensors_in
from archir.emit.undefined import find_undefined, gap
from archir.errors import EmitError
from archir.ir.execute import mode_argument
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs, symbol_sizes
from archir.ir.node import Constant, Value, leaves
from archir.ir.running import run as run_module
from archir.ir.types import TensorType

__all__ = ["Agreement", "Emitted", "Quantised", "agree", "compare", "tensors_in"]

BATCHES = (2, 3)
"""Batch sizes that are tried."""

LARGE = (12, 17)
"""Batch sizes where other axes are dynamic, too: no axis has the size anything is exported with, or the same parity."""

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
class Quantised:
    """What became 8-bit integers in a file, and what that does to the outputs on random inputs.

    Attributes:
        operators: how many operators of each kind compute with 8-bit integers; products of `Gemm` count as `MatMul`.
        relative: largest difference of an element from the file in floating point, over the largest element of that
            output; None if no output is of floating point.
        alike: part of the rows of the outputs whose largest element is at the same place, as the class of an image or
            the next token is; along axis 1 of outputs with four axes and more, along the last of others. None if no
            output has such rows.
        equal: part of the elements of outputs that are whole numbers or truth values that are the same; None if there
            are none.
    """

    operators: Mapping[str, int]
    relative: float | None
    alike: float | None
    equal: float | None = None

    @property
    def verdict(self) -> str:
        """What was quantised and what that does, in a line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.operators.items())
        told = [] if self.relative is None else [f"off by at most {self.relative:.3g} of the largest output"]
        told += [] if self.alike is None else [f"{self.alike:.1%} of the largest elements at the same place"]
        told += [] if self.equal is None else [f"{self.equal:.1%} of the whole numbers and truth values the same"]
        return f"int8: {kinds}; {', '.join(told) or 'nothing to compare'}"


@dataclass(frozen=True)
class Emitted:
    """A file that was written and checked.

    Attributes:
        path: the file.
        difference: largest absolute difference from the outputs of the graph on random inputs; of a quantised file from
            those of the same file in floating point, which has been compared with the graph.
        undefined: number of output elements that were not compared, since the graph does not define them, such as
            those at positions that attend to nothing; 0 where all agree.
        why: what leaves them undefined; empty if nothing does.
        quantised: what became 8-bit integers, if anything.
    """

    path: Path
    difference: float
    undefined: int = 0
    why: str = ""
    quantised: Quantised | None = None

    @property
    def verdict(self) -> str:
        """What the comparison found, in a line."""
        if self.quantised is None:
            found = f"largest difference from the graph {self.difference:.3g}"
        else:
            found = self.quantised.verdict
            if self.quantised.relative is not None:
                found = f"{found}; largest difference from floating point {self.difference:.3g}"
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


def agree(graph: Graph, run: Run, tolerance: float, what: str, seed: int = 0, *, roundings: int = 0) -> Agreement:
    """Compare the outputs of a graph with those of what was made from it, in eval mode, where they are defined.

    Where all outputs agree, all are compared. Where some do not, those that depend on what the graph does not define
    (`archir.emit.undefined`) are set aside, and all others are held to the tolerance.

    Args:
        graph: the graph.
        run: computes the outputs from positional and keyword arguments.
        tolerance: largest difference allowed, relative to the largest output of the graph where that exceeds 1.
        what: what is compared, for the message.
        seed: seed of the random inputs.
        roundings: for outputs that half precision leads to, how many of its roundings may differ, where that is more.

    Raises:
        EmitError: the outputs differ in number, shape, or by more than `tolerance` where they are defined; or an
            output has no element that is defined.
    """
    module = graph.module().eval()
    tolerances = [max(tolerance, roundings * eps) if eps else tolerance for eps in coarse(graph)]
    tried = [_try(graph, module, run, tolerances, what, sizes, seed) for sizes in _sizes(graph)]
    trials = [*tried, *_try_large(graph, module, run, tolerances, what, seed)]
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


def compare_training(graph: Graph, net: torch.nn.Module, tolerance: float, what: str, seed: int = 0) -> None:
    """Compare what a graph and a module made from it do in training mode: their outputs, and their buffers after it.

    Both draw the same random numbers. Where what the graph records is not finite, or not defined (the variance of a
    single element), it is not compared; a graph that does the same in both modes is not run.

    Args:
        graph: the graph.
        net: the module; its mode and buffers are as before afterwards.
        tolerance: largest difference allowed, relative to the largest magnitude where that exceeds 1.
        what: what is compared, for the message.
        seed: seed of the random inputs.

    Raises:
        EmitError: the outputs or the buffers differ by more than `tolerance`, or the module cannot be trained.
    """
    if all(mode_argument(node) is None for node in graph.calls):
        return
    module = graph.module()
    for sizes in _sizes(graph):
        args, kwargs = random_inputs(graph, seed=seed, sizes=sizes)
        try:
            wanted = _trained(module, args, kwargs)
        except ValueError:  # a layer normalises no batch that has a single element of each channel
            continue
        if not all(bool(torch.isfinite(t).all()) for t in wanted.values() if t.is_floating_point()):
            continue
        try:
            found = _trained(net, args, kwargs)
        except (RuntimeError, TypeError, AttributeError, NameError, ValueError, IndexError, KeyError) as error:
            raise EmitError(f"{what} cannot be trained", why=f"{type(error).__name__}: {error}") from error
        for name in wanted.keys() & found.keys():
            if wanted[name].shape != found[name].shape:
                raise EmitError(f"{what} returns another shape in training", where=f"{name}, {_told(sizes)}")
            most, limit = _largest(gap(wanted[name], found[name])), tolerance * _scale(wanted[name])
            if not most <= limit:
                raise EmitError(
                    f"{what} does something else in training: the largest difference of {name} is {most:.3g}",
                    where=_told(sizes),
                    why=f"at most {limit:.3g} is allowed",
                )


def _trained(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Return by name what a module computes in training mode, and its buffers after that."""
    modes = {part: part.training for part in module.modules()}
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    try:
        outputs = tensors_in(_seeded(lambda args, kwargs: module.train()(*args, **kwargs), args, kwargs))
        found = {f"output {i}": tensor for i, tensor in enumerate(outputs)}
        return found | {name: tensor.clone() for name, tensor in module.named_buffers()}
    finally:
        for part, mode in modes.items():
            part.training = mode
        for name, tensor in module.named_buffers():
            tensor.copy_(before[name])


def _seeded(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Return what is computed without gradients where chance begins at the same place each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run(args, kwargs)


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


def _try_large(
    graph: Graph, module: torch.nn.Module, run: Run, tolerances: Sequence[float], what: str, seed: int
) -> list[_Trial]:
    """Try sizes beyond those that anything was exported with, where other axes than the batch are dynamic.

    A graph that cannot be run with them itself (a table of positions is shorter) is not held to them.
    """
    found: list[_Trial] = []
    for sizes in (symbol_sizes(graph, batch) for batch in LARGE):
        if len(sizes) < 2:
            break
        args, kwargs = random_inputs(graph, seed=seed, sizes=sizes)
        try:
            _seeded(lambda args, kwargs: module(*args, **kwargs), args, kwargs)
        except (RuntimeError, IndexError, ValueError):
            break
        found.append(_try(graph, module, run, tolerances, what, sizes, seed))
    return found


def coarse(graph: Graph) -> list[float]:
    """Return for each tensor of the result the machine epsilon of half precision on the way to it, 0.0 if none is."""
    found: dict[int, float] = {}
    for node in graph.nodes:
        kinds = [t.dtype for t in node.results if isinstance(t, TensorType) and t.dtype.is_floating_point]
        own = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
        before = max((found[value.node] for value in node.values), default=0.0)
        found[node.id] = max(before, own if own > torch.finfo(torch.float32).eps else 0.0)
    outputs = list(graph.output.arguments.values())

    numbers = [end for end in leaves(graph.signature.result) if isinstance(end, int) or _is_number(end)]
    tensors = [outputs[end] if isinstance(end, int) else None for end in numbers]
    return [found[output.node] if isinstance(output, Value) else 0.0 for output in tensors]


def _is_number(constant: Constant) -> bool:
    return isinstance(constant.value, int | float)


def _try(
    graph: Graph,
    module: torch.nn.Module,
    run: Run,
    tolerances: Sequence[float],
    what: str,
    sizes: dict[str, int],
    seed: int,
) -> _Trial:
    args, kwargs = random_inputs(graph, seed=seed, sizes=sizes)
    wanted = tensors_in(_seeded(lambda args, kwargs: run_module(module, args, kwargs), args, kwargs))
    found = tensors_in(_seeded(run, args, kwargs))
    shapes = [[list(t.shape) for t in part] for part in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise EmitError(f"{what} returns shapes {shapes[1]} instead of {shapes[0]}", where=_told(sizes))
    limits = [tolerance * _scale(t) for tolerance, t in zip(tolerances, wanted, strict=True)]
    gaps = [gap(one, other) for one, other in zip(wanted, found, strict=True)]
    undefined = [torch.zeros(t.shape, dtype=torch.bool) for t in gaps]
    why = ""
    if any(_largest(g) > limit for g, limit in zip(gaps, limits, strict=True)):
        aside = find_undefined(graph, given(graph, args, kwargs), [SURE * limit for limit in limits])
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
