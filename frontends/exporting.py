"""Exports a model in evaluation mode, without a trace of it left behind."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_config
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from archir.ir.any_length import any_length
from frontends.dynamic import DynamicAxis
from frontends.examples import Example
from frontends.exported import attention_dropout

_TALKATIVE = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")

_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.dropout_: torch.dropout,
    torch.alpha_dropout_: torch.alpha_dropout,
    torch.feature_dropout_: torch.feature_dropout,
    torch.feature_alpha_dropout_: torch.feature_alpha_dropout,
    torch.rrelu_: torch.rrelu,
}
_WITH_FLAG = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu)


class Batch(Enum):
    """Which first axes of tensors are to be dynamic.

    Attributes:
        NONE: none of them.
        EACH: that of every tensor.
        ONE: that of every tensor, those that have as many rows as one size.
    """

    NONE = "none"
    EACH = "each"
    ONE = "one"


@dataclass(frozen=True)
class Wanted:
    """Which axes of the inputs of a model are to be dynamic.

    Attributes:
        batch: which first axes.
        axes: which others; those of one name are one size.
        shapes: all of them as `torch.export.export` is told, in place of the above.
    """

    batch: Batch
    axes: tuple[DynamicAxis, ...] = ()
    shapes: Any = None


class _OutOfPlace(TorchFunctionMode):
    """Takes in-place dropout apart into dropout and a write, of which export in evaluation mode would keep neither."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _OUT_OF_PLACE:
            return args[0].copy_(_OUT_OF_PLACE[func](*args, **given))
        if func in _WITH_FLAG:
            bound = inspect.signature(func).bind(*args, **given)
            if bound.arguments.get("inplace"):
                bound.arguments["inplace"] = False
                return bound.args[0].copy_(func(*bound.args, **bound.kwargs))
        return func(*args, **given)


def export(model: nn.Module, example: Example, wanted: Wanted, *, oblivious: bool) -> ExportedProgram:
    """Return the exported program of a model in evaluation mode.

    Args:
        model: the model; it is left as it was.
        example: what it is called with.
        wanted: which axes are dynamic.
        oblivious: do not care for sizes of 1, which tells what the model itself asks about them; the other way
            assumes that there are none.

    Raises:
        Exception: whatever the model or the export raises.
    """
    asking = symbolic_config.patch(backed_size_oblivious=oblivious)  # type: ignore[attr-defined]
    with (
        mode(model, training=False),
        _quiet(),
        asking,
        _OutOfPlace(),
        any_length(),
        _named_keywords(model, example),
        _one_size(model, wanted.axes),
    ):
        shapes = wanted.shapes if wanted.shapes is not None else _shapes(model, example, wanted)
        return torch.export.export(model, example.args, dict(example.kwargs), dynamic_shapes=shapes, strict=False)


def _shapes(model: nn.Module, example: Example, wanted: Wanted) -> Any:
    """Return which axes are dynamic as `torch.export.export` wants to be told, None if none is."""
    if wanted.batch is Batch.NONE and not wanted.axes:
        return None
    shared = {size: Dim(f"rows_{size}") for size in {t.shape[0] for t in example.tensors if t.dim()}}
    numbers = {id(tensor): i for i, tensor in enumerate(example.tensors)}
    named: dict[int, dict[int, Any]] = {}
    for axis in wanted.axes:
        named.setdefault(axis.tensor, {})[axis.axis] = axis.hint

    def axes(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return None
        first = shared[leaf.shape[0]] if wanted.batch is Batch.ONE else Dim.AUTO
        return _Axes(({} if wanted.batch is Batch.NONE else {0: first}) | named.get(numbers[id(leaf)], {}))

    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return {name: _like_lists(pytree.tree_map(axes, argument)) for name, argument in bound.items()}


@contextmanager
def _one_size(model: nn.Module, axes: Sequence[DynamicAxis]) -> Iterator[None]:
    """Let a model ask first of all that the axes of one name are one size."""
    groups: dict[str, list[DynamicAxis]] = {}
    for axis in axes:
        groups.setdefault(axis.name, []).append(axis)
    same = [(first, other) for name, (first, *others) in groups.items() if name for other in others]

    def ask(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = Example(args, kwargs).tensors
        for first, other in same:
            one, two = tensors[first.tensor].shape[first.axis], tensors[other.tensor].shape[other.axis]
            torch._check(one == two)  # type: ignore[no-untyped-call]

    hook = model.register_forward_pre_hook(ask, with_kwargs=True, prepend=True) if same else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


class _Axes(dict[int, Any]):
    """The dynamic axes of one tensor."""


def _like_lists(tree: Any) -> Any:
    """Return a tree with lists in place of classes of the user's, as export wants to be told of them."""
    if isinstance(tree, _Axes):
        return dict(tree)
    if type(tree) in (list, tuple):
        return type(tree)(map(_like_lists, tree))
    if type(tree) is dict:
        return {key: _like_lists(part) for key, part in tree.items()}
    known = pytree.SUPPORTED_NODES.get(type(tree))
    return tree if known is None else list(map(_like_lists, known.flatten_fn(tree)[0]))


@contextmanager
def _named_keywords(model: nn.Module, example: Example) -> Iterator[None]:
    """Let `forward` tell the arguments it takes as `**kwargs` one by one, which export wants to know."""
    forward, signature = model.forward, inspect.signature(model.forward)
    taken = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    others = [name for name in example.kwargs if name not in {p.name for p in taken}]
    if len(taken) == len(signature.parameters) or not others:
        yield
        return

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [*taken, *(inspect.Parameter(name, kind) for name in others)]
    named.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    own = model.__dict__.get("forward")
    model.__dict__["forward"] = named
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.__dict__["forward"] = own


def training_dropout(program: ExportedProgram, model: nn.Module, example: Example) -> list[float]:
    """Return the dropout probability of every attention call in training, which eval mode does not tell."""
    found = attention_dropout(program)
    if found and not any(found):
        try:
            copied = copy.deepcopy(model)
            with mode(copied, training=True), _quiet(), any_length():
                found = attention_dropout(torch.export.export(copied, example.args, dict(example.kwargs), strict=False))
        except Exception:
            return found  # a model that does not train on this input keeps what eval mode tells
    return found


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
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
        for module, before in modes:
            module.training = before


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
