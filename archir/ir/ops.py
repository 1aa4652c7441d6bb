"""Operators by name: their overload, their schema, and the types of their results.

An operator is named as ATen names it, `aten.conv2d.default`; arithmetic on run-time sizes is named
after Python's operator module, `operator.mul`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, TypeVar

import sympy
import torch

from archir.errors import GraphError, suggest
from archir.ir.constants import check_constants
from archir.ir.fitting import CLOSE, LARGE, STARTS, Fitting, points_of, sizes_in
from archir.ir.guards import Guard
from archir.ir.limits import RESULTS, Room, Watch, check_numbers
from archir.ir.limits import NotInferable as NotInferable
from archir.ir.recurrent import all_steps, one_step
from archir.ir.registry import function as function
from archir.ir.types import ScalarType, TensorType, Type, evaluate, symbol, symbols_of

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Schema:
    """The arguments of an operator, in order.

    Attributes:
        names: argument names; arguments from `keyword_from` on are keyword-only.
        defaults: default values of those arguments that have one.
        tensors: names of the arguments that hold tensors or lists of tensors.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, object]
    tensors: frozenset[str]
    keyword_from: int


def op_name(target: object) -> str:
    """Return the name of an operator as archir writes it, `aten.relu.default`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    name = getattr(target, "__name__", str(target))
    return f"{'operator' if module in ('_operator', 'operator') else module.partition('.')[0]}.{name}"


@cache
def schema(op: str) -> Schema:
    """Return the schema of an operator; that of a Python function has the names `a`, `b`, ...

    Raises:
        GraphError: there is no such operator.
    """
    target = function(op)
    if not isinstance(target, torch._ops.OpOverload):
        return Schema(("a", "b", "c"), {}, frozenset(), 3)
    arguments = target._schema.arguments
    positional = sum(not a.kwarg_only for a in arguments)
    return Schema(
        names=tuple(a.name for a in arguments),
        defaults={a.name: freeze(a.default_value) for a in arguments if a.has_default_value()},
        tensors=frozenset(a.name for a in arguments if "Tensor" in str(a.type)),
        keyword_from=positional,
    )


def freeze(value: object) -> object:
    """Turn lists into tuples, all the way down."""
    return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value


def normalise(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by schema name, in schema order, those equal to their defaults left out.

    Raises:
        GraphError: too many arguments, an unknown one, or one missing.
    """
    names = schema(op)
    if len(args) > len(names.names):
        raise GraphError(f"{op} takes {len(names.names)} arguments, not {len(args)}")
    given = dict(zip(names.names, map(freeze, args), strict=False)) | {k: freeze(v) for k, v in kwargs.items()}
    unknown = [n for n in given if n not in names.names]
    if unknown:
        raise GraphError(f"{op} has no argument {unknown[0]!r}", hint=suggest(unknown[0], names.names))
    missing = [n for n in names.names if n not in given and n not in names.defaults]
    if not isinstance(function(op), torch._ops.OpOverload):
        given = {n: a for n, a in given.items() if a is not None}  # as Python's functions take it
    elif missing:
        raise GraphError(f"{op} needs an argument {missing[0]!r}")

    def is_default(name: str) -> bool:
        if name not in names.defaults:
            return False
        default, value = names.defaults[name], given[name]
        return type(default) is type(value) and default == value

    return {n: given[n] for n in names.names if n in given and not is_default(n)}


def infer_types(
    op: str, arguments: Mapping[str, object], guards: Sequence[Guard] = (), room: Room | None = None
) -> tuple[Type, ...]:
    """Return the types of the results of an operator.

    Sizes are found by running the operator on meta tensors for several values of the symbols for which the guards
    hold and fitting `c0 + Σ ci·si`, checked at further points; where that does not do, what else sizes are made of
    (see `archir.ir.fitting`).

    Args:
        op: operator name.
        arguments: by name; in place of a tensor or run-time number stands its `Type`.
        guards: what the symbols satisfy.
        room: what the calls of a graph may take together.

    Raises:
        GraphError: the operator takes no such constants, or rejects its operands.
        NotInferable: it has no meta kernel, or a result size follows from those of the operands in no known way.
    """
    check_constants(op, arguments, (TensorType, ScalarType))
    known = tuple(guards) if any(map(_argument_symbols, arguments.values())) else ()
    found = _outcome(op, tuple(arguments.items()), tuple(map(_classes, arguments.values())), known)
    if room is not None:
        room.take(op, found.steps)
    if found.refusal is not None:
        error, what, where, why, hint = found.refusal
        raise error(what, where=where, why=why, hint=hint)
    return found.types


def same_types(left: Sequence[Type], right: Sequence[Type], guards: Sequence[Guard] = ()) -> bool:
    """Say whether types are the same, written alike or equal wherever the guards hold.

    Args:
        left: some types.
        right: others.
        guards: what the symbols in them satisfy.
    """
    if tuple(left) == tuple(right):
        return True
    if [_withoutsizes_in(t) for t in left] != [_withoutsizes_in(t) for t in right]:
        return False
    pairs = [pair for a, b in zip(left, right, strict=True) for pair in zip(sizes_in(a), sizes_in(b), strict=True)]
    unlike = [(a, b) for a, b in pairs if a != b]
    if any(a is None or b is None for a, b in unlike):
        return False
    gaps = [sympy.sympify(a) - b for a, b in unlike if a is not None and b is not None]
    names = sorted({s.name for gap in gaps for s in gap.free_symbols})
    values = [
        {symbol(n): sympy.Integer(v) for n, v in p.items()}
        for p in points_of(tuple(names), tuple(guards), (*CLOSE, *LARGE))
    ]
    return all(gap.xreplace(value).is_zero for gap in gaps for value in values)


def _withoutsizes_in(type_: Type) -> object:
    return (type_.dtype, len(type_.shape)) if isinstance(type_, TensorType) else type_.kind


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was found when the types of a call were looked for, its refusal included, and what that took."""

    types: tuple[Type, ...]
    refusal: tuple[type[GraphError], str, str, str, str] | None
    steps: int


@lru_cache(maxsize=65536)
def _outcome(
    op: str, items: tuple[tuple[str, object], ...], classes: tuple[object, ...], guards: tuple[Guard, ...]
) -> _Outcome:
    types: tuple[Type, ...] = ()
    refusal = None
    with Watch(op) as watch:
        try:
            types = _infer_types(op, items, guards)
        except GraphError as error:
            refusal = (type(error), error.what, error.where, error.why, error.hint)
    return _Outcome(types, refusal, watch.steps + len(types) // RESULTS)


def _classes(argument: object) -> object:
    """Return what tells arguments apart that are equal: 1, 1.0 and True make different results."""
    return tuple(map(_classes, argument)) if isinstance(argument, tuple) else type(argument)


def _infer_types(op: str, items: tuple[tuple[str, object], ...], guards: tuple[Guard, ...]) -> tuple[Type, ...]:
    arguments = dict(items)
    names = sorted({s for a in arguments.values() for s in _argument_symbols(a)})
    points, runs = _first_runs(op, arguments, tuple(names), guards) if names else ([{}], [_run_meta(op, arguments, {})])
    # Further checks off the grid of even sizes, where `B // 2` and the like show; not every operator takes them.
    for point in points_of(tuple(names), guards, CLOSE if _is_rounded(arguments) else CLOSE[:1]) if names else ():
        if point not in points:
            with contextlib.suppress(GraphError):
                runs.append(_run_meta(op, arguments, point))
                points = [*points, point]
    if len({len(run) for run in runs}) > 1:
        raise NotInferable(f"the number of results of {op} depends on {', '.join(names)}")
    fitting = Fitting(op, arguments, guards, points, runs[0], partial(_run_meta, op))
    results: list[Type] = []
    for number, outs in enumerate(zip(*runs, strict=True)):
        if not isinstance(outs[0], torch.Tensor | bool | int | float):
            raise NotInferable(f"a result of {op} is a {type(outs[0]).__name__}")
        if not isinstance(outs[0], torch.Tensor):
            kind = "bool" if isinstance(outs[0], bool) else "float" if isinstance(outs[0], float) else "int"
            value = fitting.size([int(o) for o in outs], partial(_read, number, None)) if kind == "int" else None
            results.append(ScalarType(kind, value))
            continue
        if len({o.dim() for o in outs}) != 1:
            raise NotInferable(f"the rank of a result of {op} depends on {', '.join(names)}")
        axes = range(outs[0].dim())
        shape = tuple(fitting.size([o.shape[d] for o in outs], partial(_read, number, d)) for d in axes)
        results.append(TensorType(outs[0].dtype, shape))
    return tuple(results)


def _first_runs(
    op: str, arguments: Mapping[str, object], names: tuple[str, ...], guards: tuple[Guard, ...]
) -> tuple[list[dict[str, int]], list[list[Any]]]:
    """Return sizes that an operator takes, small ones if it takes such, and what it makes of them."""
    refusal: GraphError | None = None
    for start in STARTS:
        points = points_of(names, guards, (24,), start)
        try:
            return points, [_run_meta(op, arguments, point) for point in points]
        except NotInferable:
            raise
        except GraphError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _read(result: int, axis: int | None, run: Sequence[Any]) -> int:
    """Return the size of an axis of a result of a run, or a result that is a number."""
    return int(run[result] if axis is None else run[result].shape[axis])


def _is_rounded(argument: object) -> bool:
    """Say whether a size in some arguments is no polynomial."""
    if isinstance(argument, Mapping | tuple):
        return any(map(_is_rounded, argument.values() if isinstance(argument, Mapping) else argument))
    sizes = sizes_in(argument) if isinstance(argument, TensorType | ScalarType) else ()
    return any(not isinstance(size, int | None) and not size.is_polynomial() for size in sizes)


def _argument_symbols(argument: object) -> frozenset[str]:
    if isinstance(argument, TensorType):
        return frozenset().union(*map(symbols_of, argument.shape))
    if isinstance(argument, ScalarType):
        return frozenset() if argument.value is None else symbols_of(argument.value)
    if isinstance(argument, tuple):
        return frozenset().union(*map(_argument_symbols, argument))
    return frozenset()


def _run_meta(op: str, arguments: Mapping[str, object], sizes: Mapping[str, int]) -> list[Any]:
    def concrete(argument: object) -> object:
        if isinstance(argument, TensorType):
            return torch.empty(_defined(lambda: argument.at(sizes)), dtype=argument.dtype, device="meta")
        if isinstance(argument, ScalarType):
            known = argument.value
            if known is None:
                raise NotInferable(f"an operand of {op} is a run-time number of unknown value")
            return _defined(lambda: evaluate(known, sizes))
        return [concrete(a) for a in argument] if isinstance(argument, tuple) else argument

    target, names = function(op), schema(op)
    try:
        values = {name: concrete(a) for name, a in arguments.items()}
        if not isinstance(target, torch._ops.OpOverload):
            return [target(*(values[n] for n in names.names if n in values))]
        if "device" in names.names and ("device" in values or not names.tensors):
            values["device"] = "meta"
        values.pop("pin_memory", None)
        keywords = {n: values[n] for n in names.names[names.keyword_from :] if n in values}
        check_numbers(op, values)
        with torch.no_grad():
            given, length = one_step(op, values)
            out = target(*positional(op, given), **keywords)
            out = out if length is None else all_steps(out, length, values)
    except NotImplementedError as error:
        raise NotInferable(f"{op} has no meta kernel", why=str(error).splitlines()[0]) from error
    except GraphError:
        raise
    except Exception as error:
        if isinstance(target, torch._ops.OpOverload) and torch.Tag.data_dependent_output in target.tags:
            raise NotInferable(f"what {op} makes depends on data") from error
        # A meta kernel that dislikes its operands may raise anything, assertions and errors of Python's included.
        shown = ", ".join(f"{n}={_show(a)}" for n, a in arguments.items())
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise GraphError(f"{op} rejects its operands", where=f"{op}({shown})", why=why) from error
    if out is None:
        return []
    return list(out) if isinstance(out, list | tuple) else [out]


def _defined(sizes: Callable[[], _T]) -> _T:
    """Return sizes where they have values: those of a graph may have none but where its guards hold."""
    try:
        return sizes()
    except GraphError as error:
        raise NotInferable(error.what, why=error.why) from error


def _show(argument: object) -> str:
    return f"[{', '.join(map(_show, argument))}]" if isinstance(argument, tuple) else str(argument)


def positional(op: str, values: Mapping[str, object]) -> list[object]:
    """Return the positional arguments of a call: up to the last one given, defaults between."""
    names = schema(op)
    given = [i for i, n in enumerate(names.names[: names.keyword_from]) if n in values]
    last = given[-1] + 1 if given else 0
    return [values[n] if n in values else names.defaults[n] for n in names.names[:last]]
