"""Captures a PyTorch model as a graph."""

from __future__ import annotations

import contextlib
import copy
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from archir.errors import ArchirError, CaptureError, CaptureWarning
from archir.ir.graph import Graph
from archir.ir.module_tree import mode_changes, module_tree
from archir.ir.node import Signature
from archir.ir.verify import verify
from frontends.agreement import compare
from frontends.examples import Example, examples, resized, sizes_of
from frontends.exported import to_graph
from frontends.exporting import ANY_BATCH, ONE_BATCH, export, mode, training_dropout
from frontends.guards import Assumption, divides, excluded_by, fixed_at, guards_of, shape_env, single_value
from frontends.locations import TORCH
from frontends.training_only import losses

_PASSED_THROUGH = (str(Path(__file__).parent), contextlib.__file__, "<")
"""Where code of nobody's own stands that an error comes through."""


def trace(
    model: nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    static_batch: bool = False,
) -> Graph:
    """Capture a model as a graph.

    The model is captured in eval mode and left as it was; the graph has copies of its tensors, and modules made of it
    are in the modes that those of the model are in. Axis 0 of every input is the batch size `B`. Where the control flow
    of the model depends on it, the branch of the example is captured, and for which sizes that is right stays with the
    graph as guards (`B >= 3`, `B % 2 == 0`), which its modules check. What a model does in training mode only is not
    captured, except that dropout and normalisation follow `train()` and `eval()`; a `CaptureWarning` tells what is
    lost, and where.

    Args:
        model: any nn.Module (an fx GraphModule is one).
        args: example positional arguments; a single tensor stands for itself.
        kwargs: example keyword arguments.
        dynamic_shapes: which axes are dynamic, as for `torch.export.export`.
        static_batch: capture the model for the batch size of the example only.

    Raises:
        CaptureError: the model cannot be captured: it rejects its arguments, its control flow depends on data,
            it works for one batch size only and `static_batch` is not given, or it does something a graph
            cannot say (writes into inputs or buffers, higher-order operators).

    Source: ours, on top of `torch.export`.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"a model is an nn.Module, not a {type(model).__name__}")
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, tuple):
        raise CaptureError(f"the example arguments are a tuple, not a {type(args).__name__}", hint="pass (x,)")
    if static_batch and dynamic_shapes is not None:
        raise CaptureError("dynamic_shapes and static_batch exclude one another", hint="give one of them")
    example = Example(args, dict(kwargs or {})).distinct()
    if static_batch or dynamic_shapes is not None:
        graph = _as_asked(model, example, dynamic_shapes)
    else:
        graph = _with_any_batch(model, example)
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


def _converted(program: ExportedProgram, model: nn.Module, example: Example) -> Graph:
    try:
        graph, assumed = to_graph(program, model, training_dropout(program, model, example))
    except CaptureError:
        raise
    except Exception as error:
        raise _explain(model, error) from error
    try:
        verify(graph)
    except ArchirError as error:
        raise CaptureError(f"{type(model).__name__} was captured as a malformed graph", why=str(error)) from error
    return _without_doubts(graph, assumed, program, model)


def _without_doubts(graph: Graph, assumed: tuple[Assumption, ...], program: ExportedProgram, model: nn.Module) -> Graph:
    """Drop guards that say of a size no more than that it is not 1, where the graph is the model at 1 as well."""
    for name in sorted({a.doubtful for a in assumed if a.doubtful is not None}):
        sizes = sizes_of(graph, program) | {name: 1}
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


def _with_any_batch(model: nn.Module, example: Example) -> Graph:
    """Capture with a dynamic batch.

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
                program = export(model, tried, ANY_BATCH, oblivious=oblivious)
            except Exception as error:
                if isinstance(error, GuardOnDataDependentSymNode) and not oblivious:
                    raise _explain(model, error) from error
                failures.append(error)  # the other way, or fixed sizes, may do; if not, it is told
                continue
            if shape_env(program) is None and any(t.dim() for t in tried.tensors):
                fixed.append((fixed_at(program), "the size of its batch was decided there"))
                continue
            try:
                graph = _converted(program, model, example)
            except CaptureError as error:
                failures.append(error)
                continue
            if any(map(divides, graph.signature.guards)):
                graph, program = _with_one_batch(model, tried) or (graph, program)
            guards, sizes = graph.signature.guards, sizes_of(graph, program)
            sizes = {name: size // (2 if doubled else 1) for name, size in sizes.items()}
            single, excluded = single_value(guards), excluded_by(guards, sizes)
            if single is None and excluded is None:
                return graph
            if not doubled:
                why = f"its graph is right for {single or excluded} only"
                fixed.append((fixed_at(program), why + ("" if excluded is None else ", and the example is not")))
        if not failures:
            break
    told = next((error for error in failures if isinstance(error, CaptureError)), None)
    if told is not None and not fixed:
        raise told
    _as_asked(model, example, None)
    where, why = fixed[-1] if fixed else (_user_line(failures[0]), _first_line(failures[0]))
    if not where or where.startswith(TORCH):
        own = _own_error(model, example.doubled())  # with another batch size the model itself may tell its line
        where = _user_line(own) if own is not None else where
    raise CaptureError(
        f"{type(model).__name__} works for one batch size only",
        where=where,
        why=why,
        hint="let it work for any, or capture the size of the example alone: static_batch=True, --static-batch",
    )


def _with_one_batch(model: nn.Module, example: Example) -> tuple[Graph, ExportedProgram] | None:
    """Capture with batch axes that are one size; None if that does not do."""
    try:
        program = export(model, example, ONE_BATCH, oblivious=True)
        graph = _converted(program, model, example)
    except Exception:
        return None  # the sizes are not the same then, or the model asks more of them
    return None if any(map(divides, graph.signature.guards)) else (graph, program)


def _as_asked(model: nn.Module, example: Example, dynamic_shapes: Any) -> Graph:
    """Capture with the axes dynamic that are asked for; none if there are none."""
    failed: Exception | None = None
    # The other way may do; if not, its error is told.
    for oblivious in (True, False) if dynamic_shapes is not None else (False,):
        try:
            program = export(model, example, dynamic_shapes, oblivious=oblivious)
            graph = _converted(program, model, example)
            excluded = excluded_by(graph.signature.guards, sizes_of(graph, program))
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
    raise _explain(model, _own_error(model, example) or failed) from failed


def _own_error(model: nn.Module, example: Example) -> Exception | None:
    """Return the error the model itself raises on its arguments, if it does."""
    try:
        model, example = copy.deepcopy((model, example))
    except Exception:
        return None  # not copied, not run: the model stays as it was
    try:
        model(*example.args, **example.kwargs)
    except Exception as error:
        return error
    return None


def _explain(model: nn.Module, error: Exception) -> CaptureError:
    name = type(model).__name__
    where = _user_line(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        return CaptureError(
            f"{name} cannot be captured: its control flow depends on data",
            where=where,
            why=_first_line(error),
            hint="decide on shapes or arguments instead, or compute both branches and choose with torch.where",
        )
    return CaptureError(f"{name} cannot be captured", where=where, why=f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """Return the first line of a message, and the first thing it lists."""
    lines = str(error).strip().split("\n\nThe error above occurred", 1)[0].splitlines()
    listed = next((line.strip() for line in lines if line.startswith("  - ")), "")
    return " ".join(filter(None, [*lines[:1], listed])) or type(error).__name__


def _user_line(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_PASSED_THROUGH)]
    users = [f for f in frames if not f.filename.startswith(TORCH)]
    modules = Path(TORCH, "nn", "modules")
    stock = [f for f in frames if modules in Path(f.filename).parents and Path(f.filename).name != "module.py"]
    for frame in reversed(users or stock):
        return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""
