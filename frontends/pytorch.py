"""Captures a PyTorch model as a graph."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from archir.errors import ArchirError, CaptureError, CaptureWarning
from archir.ir.axis_names import BATCH, DynamicAxes, name_fault
from archir.ir.graph import Graph
from archir.ir.input_checks import example_symbols
from archir.ir.module_tree import mode_changes, module_tree
from archir.ir.node import Signature
from archir.ir.verify import verify
from frontends.agreement import compare
from frontends.capture_errors import explain, first_line, own_error, user_line
from frontends.dynamic import DynamicAxis, asked_axes, differing_axes, input_names, named_axes
from frontends.examples import Example, examples, resized, sizes_of
from frontends.exported import to_graph
from frontends.exporting import Batch, Wanted, export, mode, training_dropout
from frontends.guards import (
    Assumption,
    divides,
    excluded_by,
    fixed_at,
    fixed_axes,
    guards_of,
    has_batch,
    single_value,
)
from frontends.locations import TORCH
from frontends.training_only import losses


def trace(
    model: nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: DynamicAxes | None = None,
    other: tuple[Any, ...] | torch.Tensor | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    static_batch: bool = False,
) -> Graph:
    """Capture a model as a graph.

    The model is captured in eval mode and left as it was; the graph has copies of its tensors, and modules made of it
    are in the modes that those of the model are in. Axis 0 of every input is the batch size `B`. Other axes have the
    sizes of the example, unless they are named to be dynamic, or a second example has other sizes. Where the control
    flow of the model depends on it, the branch of the example is captured, and for which sizes that is right stays with
    the graph as guards (`B >= 3`, `B % 2 == 0`), which its modules check. What a model does in training mode only is
    not captured, except that dropout and normalisation follow `train()` and `eval()`; a `CaptureWarning` tells what is
    lost, and where.

    Args:
        model: any nn.Module (an fx GraphModule is one).
        args: example positional arguments; a single tensor stands for itself.
        kwargs: example keyword arguments.
        dynamic: the names of further axes that are dynamic, `{"x": {1: "T"}}`; axes of one name are one size. Inputs
            are called what they are in the graph: `x`, or `batch_ids` for `batch["ids"]`.
        other: what the model is called with when these have other sizes: the axes that differ are dynamic, and called
            `B1`, `B2`, ... where they have no names. Positional arguments, `kwargs` being the same; or a mapping with
            all arguments by name.
        dynamic_shapes: which axes are dynamic, those of the batch included, as for `torch.export.export`; a size has
            the name of its `Dim`.
        static_batch: capture the model for the batch size of the example only.

    Raises:
        CaptureError: the model cannot be captured: it rejects its arguments, its control flow depends on data,
            it works for one batch size only and `static_batch` is not given, it fixes the size of an axis that is to be
            dynamic, axes are named that are not there, or it does something a graph cannot say (writes into inputs or
            buffers, higher-order operators).

    Source: ours, on top of `torch.export`.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"a model is an nn.Module, not a {type(model).__name__}")
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, tuple):
        raise CaptureError(f"the example arguments are a tuple, not a {type(args).__name__}", hint="pass (x,)")
    given = {"dynamic": dynamic, "other": other, "static_batch": static_batch or None}
    both = [name for name, value in given.items() if value is not None and dynamic_shapes is not None]
    if both:
        raise CaptureError(f"dynamic_shapes and {both[0]} exclude one another", hint="give one of them")
    example = Example(args, dict(kwargs or {})).distinct()
    second = None if other is None else _other(model, example, other)
    wanted = _wanted(model, example, second, dynamic, dynamic_shapes, static_batch=static_batch)
    if wanted.batch is Batch.NONE:
        graph = _as_asked(model, example, wanted)
    else:
        graph = _with_any_batch(model, example, wanted.axes)
    graph = _sized(graph, example)
    if second is not None:
        _check_other(graph, model, second)
    difference = compare(graph, model, example).difference
    if difference:
        raise CaptureError(
            f"the graph of {type(model).__name__} computes something else than the model",
            why=f"on the example, with weights a little off, {difference}",
            hint="capture its submodules one by one to find where, and write that part in other operators",
        )
    with mode(model, training=False):  # a copy may call functions that the model has kept, and they the model
        lost = list(losses(model, (example for example, _ in examples(example)), mode))
    if not lost:
        trained = compare(graph, model, example, training=True)
        lost = [f"<root>: {trained.difference} in training"] if trained.compared and trained.difference else []
    if lost:
        warnings.warn(CaptureWarning(type(model).__name__, lost), stacklevel=2)
    modes = {path: module.training for path, module in model.named_modules(remove_duplicate=False)}
    changes = mode_changes(module_tree(graph).children, modes)
    return _with_signature(graph, replace(graph.signature, mode_changes=changes))


def _other(model: nn.Module, example: Example, other: Any) -> Example:
    """Return the second example a user gives."""
    if isinstance(other, Mapping):
        bound = inspect.signature(model.forward).bind_partial(*example.args)
        missing = [name for name in bound.arguments if name not in other]
        if missing:
            why = f"it lacks {', '.join(missing)}"
            raise CaptureError("a mapping as the other example has all arguments by name", why=why)
        positional = tuple(other[name] for name in bound.arguments)
        named = {name: value for name, value in other.items() if name not in bound.arguments}
        return Example(positional, named).distinct()
    found = (other,) if isinstance(other, torch.Tensor) else other
    if not isinstance(found, tuple):
        kind = type(found).__name__
        raise CaptureError(f"the other example is a tensor, a tuple or a mapping, not a {kind}", hint="pass other=(x,)")
    return Example(found, example.kwargs).distinct()


def _wanted(
    model: nn.Module,
    example: Example,
    other: Example | None,
    dynamic: DynamicAxes | None,
    shapes: Any,
    *,
    static_batch: bool,
) -> Wanted:
    """Return which axes are to be dynamic.

    Raises:
        CaptureError: some are named that are not there, or two examples do not show any.
    """
    batch = Batch.NONE if static_batch or shapes is not None else Batch.EACH
    if shapes is None and not dynamic and other is None:
        return Wanted(batch)
    try:
        if shapes is not None:
            asked = asked_axes(shapes, model, example)
            return Wanted(batch, shapes=shapes) if asked is None else Wanted(batch, asked)
        axes = () if dynamic is None else named_axes(dynamic, model, example)
        return Wanted(batch, axes if other is None else differing_axes(example, other, model, axes))
    except TypeError as error:  # the arguments do not fit the signature
        raise explain(model, own_error(model, example) or error) from error


def _sized(graph: Graph, example: Example) -> Graph:
    """Return a graph that says what its sizes besides the batch are in the example."""
    batch, sizes = example_symbols(graph), sizes_of(graph, (example.args, example.kwargs))
    found = tuple((name, size) for name, size in sizes.items() if name not in batch)
    signature = replace(graph.signature, sizes=found)
    return _with_signature(graph, signature) if found else graph


def _check_other(graph: Graph, model: nn.Module, other: Example) -> None:
    """Check that a graph computes what the model does on the other example, too.

    Raises:
        CaptureError: it does not.
    """
    sizes = sizes_of(graph, (other.args, other.kwargs))
    excluded = excluded_by(graph.signature.guards, sizes)
    told = f"its graph is right for {excluded} only, and the other example is not"
    difference = compare(graph, model, other).difference if excluded is None else told
    if difference:
        raise CaptureError(
            f"the graph of {type(model).__name__} is not right for the other example",
            why=difference,
            hint="the model takes another way for such sizes: capture it for each of them, or let it take one way",
        )


def _converted(program: ExportedProgram, model: nn.Module, example: Example, axes: Sequence[DynamicAxis]) -> Graph:
    fixed = fixed_axes(program, axes)
    if fixed:
        raise _fixed(model, example, program, fixed)
    names = {(axis.tensor, axis.axis): axis.name for axis in axes if axis.name and not _name_fault(axis)}
    try:
        graph, assumed = to_graph(program, model, training_dropout(program, model, example), names)
    except CaptureError:
        raise
    except Exception as error:
        raise explain(model, error) from error
    try:
        verify(graph)
    except ArchirError as error:
        raise CaptureError(f"{type(model).__name__} was captured as a malformed graph", why=str(error)) from error
    return _without_doubts(graph, assumed, program, model)


def _without_doubts(graph: Graph, assumed: tuple[Assumption, ...], program: ExportedProgram, model: nn.Module) -> Graph:
    """Drop guards that say of a size no more than that it is not 1, where the graph is the model at 1 as well."""
    for name in sorted({a.doubtful for a in assumed if a.doubtful is not None}):
        sizes = sizes_of(graph, program.example_inputs) | {name: 1}
        guards = guards_of(assumed, without=(name,))
        if guards == graph.signature.guards or excluded_by(guards, sizes) is not None:
            continue
        without = _with_signature(graph, replace(graph.signature, guards=guards))
        agreement = compare(without, model, resized(graph, program, sizes))
        if agreement.compared and not agreement.difference:
            graph, assumed = without, tuple(a for a in assumed if a.doubtful != name)
    return graph


def _with_signature(graph: Graph, signature: Signature) -> Graph:
    return Graph(graph.name, graph.nodes, graph.tensors, signature)


def _name_fault(axis: DynamicAxis) -> str:
    return "" if axis.axis == 0 and axis.name == BATCH else name_fault(axis.name)


def _fixed(model: nn.Module, example: Example, program: ExportedProgram, axes: Sequence[DynamicAxis]) -> CaptureError:
    """Return the error for axes that are to be dynamic and that a model leaves one size."""
    names, lines = input_names(model, example), dict[str, None]()
    shown = [f"axis {axis.axis} of {names[axis.tensor]}" + (f" ({axis.name})" if axis.name else "") for axis in axes]
    for axis in axes:
        where = fixed_at(program, example.tensors[axis.tensor].shape[axis.axis])
        if not where or where.startswith(TORCH):
            own = own_error(model, example.longer(axis.axis, example.tensors[axis.tensor].shape[axis.axis]))
            where = user_line(own) if own is not None else where
        lines |= {where: None} if where else {}
    sizes = sorted({example.tensors[axis.tensor].shape[axis.axis] for axis in axes})
    alike = [
        f"axis {axis} of {name}"
        for number, (name, tensor) in enumerate(zip(names, example.tensors, strict=True))
        for axis, size in enumerate(tensor.shape)
        if axis and size in sizes and not any((a.tensor, a.axis) == (number, axis) for a in axes)
    ]
    also = f"if it is the size of {' and of '.join(alike)} as well, name that alike; else " if alike else ""
    return CaptureError(
        f"{type(model).__name__} fixes the size of {' and of '.join(shown)}, which is to be dynamic",
        where="\n         ".join(lines),
        why=f"it works for a size of {' and '.join(map(str, sizes))} only",
        hint=f"{also}compute with the size of the input, not with a number, or leave the axis out: it is one size then",
    )


def _with_any_batch(model: nn.Module, example: Example, axes: tuple[DynamicAxis, ...]) -> Graph:
    """Capture with a dynamic batch, and other axes that are dynamic.

    Raises:
        CaptureError: the model cannot be captured, or works for one batch size only.
    """
    failures: list[Exception] = []
    fixed: list[tuple[str, str]] = []
    # Export that does not care for sizes of 1 tells what the model itself asks about them; the other way assumes that
    # there are none, which is kept as a guard.
    for oblivious in (True, False):
        for tried, doubled in examples(example):
            try:
                program = export(model, tried, Wanted(Batch.EACH, axes), oblivious=oblivious)
            except Exception as error:
                if isinstance(error, GuardOnDataDependentSymNode) and not oblivious:
                    raise explain(model, error) from error
                failures.append(error)  # the other way, or fixed sizes, may do; if not, it is told
                continue
            if not has_batch(program) and any(t.dim() for t in tried.tensors):
                fixed.append((fixed_at(program), "the size of its batch was decided there"))
                continue
            try:
                graph = _converted(program, model, tried, axes)
            except CaptureError as error:
                failures.append(error)
                continue
            if any(map(divides, graph.signature.guards)):
                graph, program = _with_one_batch(model, tried, axes) or (graph, program)
            guards, sizes = graph.signature.guards, sizes_of(graph, program.example_inputs)
            batch = example_symbols(graph)
            sizes = {name: size // (2 if doubled and name in batch else 1) for name, size in sizes.items()}
            single, excluded = single_value(guards), excluded_by(guards, sizes)
            if single is None and excluded is None:
                return graph
            if single is not None and not single.symbols & batch:
                named = [axis for axis in axes if axis.name in single.symbols] or axes
                failures.append(_fixed(model, tried, program, named))
            elif not doubled:
                why = f"its graph is right for {single or excluded} only"
                fixed.append((fixed_at(program), why + ("" if excluded is None else ", and the example is not")))
        if not failures:
            break
    told = next((error for error in failures if isinstance(error, CaptureError)), None)
    if told is not None and not fixed:
        raise told
    _as_asked(model, example, Wanted(Batch.NONE, axes))
    where, why = fixed[-1] if fixed else (user_line(failures[0]), first_line(failures[0]))
    if not where or where.startswith(TORCH):
        own = own_error(model, example.doubled())  # with another batch size the model itself may tell its line
        where = user_line(own) if own is not None else where
    raise CaptureError(
        f"{type(model).__name__} works for one batch size only",
        where=where,
        why=why,
        hint="let it work for any, or capture the size of the example alone: static_batch=True, --static-batch",
    )


def _with_one_batch(
    model: nn.Module, example: Example, axes: tuple[DynamicAxis, ...]
) -> tuple[Graph, ExportedProgram] | None:
    """Capture with batch axes that are one size; None if that does not do."""
    try:
        program = export(model, example, Wanted(Batch.ONE, axes), oblivious=True)
        graph = _converted(program, model, example, axes)
    except Exception:
        return None  # the sizes are not the same then, or the model asks more of them
    return None if any(map(divides, graph.signature.guards)) else (graph, program)


def _as_asked(model: nn.Module, example: Example, wanted: Wanted) -> Graph:
    """Capture with the axes dynamic that are asked for; none if there are none."""
    failed: Exception | None = None
    # The other way may do; if not, its error is told.
    for oblivious in (True, False) if wanted.axes or wanted.shapes is not None else (False,):
        try:
            program = export(model, example, wanted, oblivious=oblivious)
            graph = _converted(program, model, example, wanted.axes)
            excluded = excluded_by(graph.signature.guards, sizes_of(graph, program.example_inputs))
            if excluded is None:
                return graph
            failed = CaptureError(
                f"{type(model).__name__} cannot be captured with these axes dynamic",
                why=f"its graph is right for {excluded} only, and the example is not",
                hint="give fewer dynamic axes",
            )
        except Exception as error:
            failed = error
    assert failed is not None
    if isinstance(failed, CaptureError):
        raise failed
    raise explain(model, own_error(model, example) or failed) from failed
