"""Captures a PyTorch model as a graph."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from archir.errors import ArchirError, CaptureError, CaptureWarning
from archir.ir.graph import Graph
from archir.ir.verify import verify
from frontends.exported import attention_dropout, to_graph
from frontends.guards import excluded_by, fixed_at, shape_env, single_value
from frontends.locations import TORCH
from frontends.training_only import losses

_HERE = str(Path(__file__).parent)
_TALKATIVE = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


def trace(
    model: nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    static_batch: bool = False,
) -> Graph:
    """Capture a model as a graph.

    The model is captured in eval mode and left as it was; the graph has copies of its tensors. Axis 0 of every
    input is the batch size `B`. Where the control flow of the model depends on it, the branch of the example is
    captured, and for which sizes that is right stays with the graph as guards (`B >= 3`, `B % 2 == 0`), which its
    modules check. What a model does in training mode only is not captured, except that dropout and normalisation
    follow `train()` and `eval()`; a `CaptureWarning` tells what is lost, and where.

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
        raise CaptureError(f"the example arguments are a tuple, not a {type(args).__name__}", mend="pass (x,)")
    keywords = dict(kwargs or {})
    if static_batch and dynamic_shapes is not None:
        raise CaptureError("dynamic_shapes and static_batch exclude one another", mend="give one of them")
    if static_batch or dynamic_shapes is not None:
        graph = _converted(_export_as_asked(model, args, keywords, dynamic_shapes), model, args, keywords)
    else:
        graph = _with_any_batch(model, args, keywords)
    lost = list(losses(model, (example for example, _ in _batches(args, keywords)), _mode))
    if lost:
        warnings.warn(CaptureWarning(type(model).__name__, lost), stacklevel=2)
    return graph


def _converted(program: ExportedProgram, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    graph = to_graph(program, model, _attention_dropout(program, model, args, kwargs))
    try:
        verify(graph)
    except ArchirError as error:
        raise CaptureError(f"{type(model).__name__} was captured as a malformed graph", why=str(error)) from error
    return graph


def _with_any_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Capture with a dynamic batch.

    Raises:
        CaptureError: the model cannot be captured, or works for one batch size only.
    """
    failures: list[Exception] = []
    fixed: list[tuple[str, str]] = []
    # Export that does not care for sizes of 1 tells what the model itself asks about them; the other way assumes that
    # there are none, which is kept as a guard.
    for oblivious in (True, False):
        for example, doubled in _batches(args, kwargs):
            try:
                program = _exported(model, *example, _dynamic(model, *example), oblivious=oblivious)
            except Exception as error:
                if isinstance(error, GuardOnDataDependentSymNode) and not oblivious:
                    raise _explain(model, error) from error
                failures.append(error)  # the other way, or fixed sizes, may do; if not, it is told
                continue
            if shape_env(program) is None and _have_axes(example):
                fixed.append((fixed_at(program), "the size of its batch was decided there"))
                continue
            try:
                graph = _converted(program, model, args, kwargs)
            except CaptureError as error:
                failures.append(error)
                continue
            single, excluded = single_value(graph.signature.guards), excluded_by(graph, program, 2 if doubled else 1)
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
    _export_as_asked(model, args, kwargs, None)
    where, why = fixed[-1] if fixed else (_user_line(failures[0]), _first_line(failures[0]))
    if not where or where.startswith(TORCH):
        own = _own_error(model, *_doubled(args, kwargs))  # with another batch size the model itself may tell its line
        where = _user_line(own) if own is not None else where
    raise CaptureError(
        f"{type(model).__name__} works for one batch size only",
        where=where,
        why=why,
        mend="let it work for any, or capture the size of the example alone: static_batch=True, --static-batch",
    )


def _export_as_asked(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """Export with the axes dynamic that are asked for; none if there are none."""
    try:
        if dynamic_shapes is not None:
            try:
                return _exported(model, args, kwargs, dynamic_shapes, oblivious=True)
            except Exception:
                pass  # the other way may do; if not, its error is told
        return _exported(model, args, kwargs, dynamic_shapes, oblivious=False)
    except Exception as error:
        raise _explain(model, _own_error(model, args, kwargs) or error) from error


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any, *, oblivious: bool
) -> ExportedProgram:
    asking = symbolic_config.patch(backed_size_oblivious=oblivious)  # type: ignore[attr-defined]
    with _mode(model, training=False), _quiet(), asking:
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)


def _have_axes(example: object) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.dim() for leaf in pytree.tree_leaves(example))


def _own_error(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """Return the error the model itself raises on its arguments, if it does."""
    try:
        model, args, kwargs = copy.deepcopy((model, args, kwargs))
    except Exception:
        return None  # not copied, not run: the model stays as it was
    try:
        model(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _attention_dropout(
    program: ExportedProgram, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[float]:
    """Return the dropout probability of every attention call in training, which eval mode does not tell."""
    found = attention_dropout(program)
    if found and not any(found):
        try:
            copied = copy.deepcopy(model)
            with _mode(copied, training=True), _quiet():
                found = attention_dropout(torch.export.export(copied, args, kwargs, strict=False))
        except Exception:
            return found  # a model that does not train on this input keeps what eval mode tells
    return found


def _batches(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[tuple[Any, ...], dict[str, Any]], bool]]:
    """Yield the arguments to try, and whether they are doubled: a batch of one is, as export may fix it."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if tensors and all(t.shape[0] == 1 for t in tensors):
        yield _doubled(args, kwargs), True
    yield (args, kwargs), False


def _doubled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t, t]) if t.dim() else t, (args, kwargs))  # type: ignore[no-any-return]


def _dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def axes(leaf: object) -> object:
        return {0: Dim.AUTO} if isinstance(leaf, torch.Tensor) and leaf.dim() else None

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: pytree.tree_map(axes, argument) for name, argument in bound.items()}


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the mode of every submodule, without calling the user's `train`, and the fused fast path off."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module, _ in modes:
            module.training = training
        with torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep export from logging what is raised anyway, and from warning of what recurrent layers do."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, _TALKATIVE)]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", message=r"The tensor attributes? self\..* assigned during export")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _explain(model: nn.Module, error: Exception) -> CaptureError:
    name = type(model).__name__
    where = _user_line(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        return CaptureError(
            f"{name} cannot be captured: its control flow depends on data",
            where=where,
            why=_first_line(error),
            mend="decide on shapes or arguments instead, or compute both branches and choose with torch.where",
        )
    return CaptureError(f"{name} cannot be captured", where=where, why=f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """Return the first line of a message, and the first thing it lists."""
    lines = str(error).strip().split("\n\nThe error above occurred", 1)[0].splitlines()
    listed = next((line.strip() for line in lines if line.startswith("  - ")), "")
    return " ".join(filter(None, [*lines[:1], listed])) or type(error).__name__


def _user_line(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_HERE, "<"))]
    users = [f for f in frames if not f.filename.startswith(TORCH)]
    modules = Path(TORCH, "nn", "modules")
    stock = [f for f in frames if modules in Path(f.filename).parents and Path(f.filename).name != "module.py"]
    for frame in reversed(users or stock):
        return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""
