"""Checks what a module is called with against the inputs of its graph: kinds, ranks, sizes, and the guards."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy
import torch

from archir.errors import GraphError
from archir.ir.data import GraphData
from archir.ir.guards import Guard, choose, compute, fault, fold, whole
from archir.ir.types import ScalarType, Size, TensorType, Type, dtype_name, symbol, symbols_of

_OPERATORS: Mapping[str, type[ast.operator]] = {"+": ast.Add, "*": ast.Mult, "//": ast.FloorDiv, "%": ast.Mod}
_COMPARE: Mapping[str, type[ast.cmpop]] = {
    "==": ast.Eq,
    "!=": ast.NotEq,
    "<=": ast.LtE,
    ">=": ast.GtE,
    "<": ast.Lt,
    ">": ast.Gt,
}
_NUMBERS: Mapping[str, tuple[type, ...]] = {
    "int": (int, torch.SymInt),
    "float": (float, int, torch.SymFloat),
    "bool": (bool, torch.SymBool),
}
"""What a number of each kind is, in a program that is run or captured."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a symbol is read off: `size = factor * symbol + offset`.

    Attributes:
        input: number of the input.
        axis: axis of it; None for an input that is a number itself.
        factor: a positive integer.
        offset: an integer.
    """

    input: int
    axis: int | None
    factor: int = 1
    offset: int = 0


def sources(types: Sequence[Type]) -> dict[str, Source]:
    """Return where each symbol is read off the inputs; those that no size tells are left out.

    Args:
        types: the types of the inputs, in order.
    """
    found: dict[str, Source] = {}
    for i, axis, size in _sizes(types):
        if not isinstance(size, int) and size.is_Symbol:
            found.setdefault(size.name, Source(i, axis))
    for i, axis, size in _sizes(types):
        names = symbols_of(size)
        if len(names) == 1 and not names & found.keys():
            (name,) = names
            terms = sympy.Poly(size, symbol(name)).all_coeffs() if size.is_polynomial() else []  # type: ignore[union-attr]
            if len(terms) == 2 and all(t.is_Integer for t in terms) and terms[0] > 0:
                found[name] = Source(i, axis, int(terms[0]), int(terms[1]))
    return found


def example_symbols(graph: GraphData) -> frozenset[str]:
    """Return the symbols that the examples of a batch lie along: those of the first axes of the inputs.

    One that some input has on another axis, as the length of a sequence, is none of them. Where the outputs begin with
    none of these, it is those that they begin with.
    """
    shapes, made = (
        [t.shape for t in types if isinstance(t, TensorType) and t.shape]
        for types in ([n.results[0] for n in graph.inputs], map(graph.type_of, graph.output.values))
    )
    first = frozenset().union(*(symbols_of(shape[0]) for shape in shapes))
    known = frozenset().union(*(symbols_of(size) for shape in shapes for size in shape))
    begun = known.intersection(*(symbols_of(shape[0]) for shape in made)) if made else frozenset()
    found = first - frozenset().union(*(symbols_of(size) for shape in shapes for size in shape[1:])) or first
    return found if found & begun or not begun else begun


def any_sizes(graph: GraphData) -> frozenset[str]:
    """Return the symbols of sizes that may be any, such as the length of a sequence; those of the examples left out."""
    known = frozenset().union(*(symbols_of(size) for _, _, size in _sizes([n.results[0] for n in graph.inputs])))
    return known - example_symbols(graph)


def _sizes(types: Sequence[Type]) -> list[tuple[int, int | None, Size]]:
    """Return every size the inputs have: number of the input, axis, size."""
    found: list[tuple[int, int | None, Size]] = []
    for i, type_ in enumerate(types):
        if isinstance(type_, TensorType):
            found += [(i, axis, size) for axis, size in enumerate(type_.shape)]
        elif type_.value is not None:
            found.append((i, None, type_.value))
    return found


def faults(graph: GraphData) -> list[str]:
    """Return what is wrong with the guards of a graph: symbols that no input tells, or that no sizes satisfy them.

    The sizes it was captured for are to be those of some input, and to satisfy the guards that are about them alone.
    """
    known = sources([n.results[0] for n in graph.inputs])
    sizes = dict(graph.signature.sizes)
    problems = [f"{name} = {size}: no input has the size {name}" for name, size in sizes.items() if name not in known]
    guards = graph.signature.guards
    for guard in guards:
        unknown = sorted(guard.symbols - known.keys())
        why = fault(guard) or (f"no input has the size {', '.join(unknown)}" if unknown else "")
        problems += [f"the guard {guard}: {why}"] if why else []
    if not problems:
        for guard in guards:
            if guard.symbols and guard.symbols <= sizes.keys() and not _holds(guard, sizes):
                told = ", ".join(f"{name} = {sizes[name]}" for name in sorted(guard.symbols))
                problems.append(f"the guard {guard} does not hold for {told}")
        try:
            choose(guards, {name: 2 for guard in guards for name in guard.symbols})
        except GraphError as error:
            problems.append(error.what)
    return problems


def expression(size: Size, names: Mapping[str, ast.expr]) -> ast.expr:
    """Return the source of a size, given that of its symbols.

    Raises:
        GraphError: it is no arithmetic of whole numbers.
    """

    def apply(name: str, parts: Sequence[ast.expr]) -> ast.expr:
        if name in ("max", "min"):
            return ast.Call(ast.Name(name, ast.Load()), list(parts), [])
        return reduce(lambda a, b: ast.BinOp(a, _OPERATORS[name](), b), parts)

    return fold(size, names.__getitem__, ast.Constant, apply)


def condition(guard: Guard, names: Mapping[str, ast.expr]) -> ast.expr:
    """Return the source of a guard, given that of its symbols.

    Raises:
        GraphError: it is no arithmetic of whole numbers.
    """
    left, right = (expression(side, names) for side in whole(guard))
    return ast.Compare(left, [_COMPARE[guard.relation]()], [right])


def entry_check(graph: GraphData) -> Callable[..., None]:
    """Return a function that is called with the inputs of a graph, in order, and checks them.

    It raises a GraphError that tells all that is wrong. Element types are told apart by kind only (floating-point,
    complex, integer, truth value), since a module may be cast.
    """
    names = [node.name or f"input {i}" for i, node in enumerate(graph.inputs)]
    types = [node.results[0] for node in graph.inputs]
    guards = graph.signature.guards
    found = sources(types)
    known = {name: ast.Name(f"size_{i}", ast.Load()) for i, name in enumerate(found)}
    given = [f"input_{i}" for i in range(len(types))]
    graph_name = graph.name

    def refuse(*values: object) -> None:
        problems = complaints(names, types, guards, values)
        raise GraphError(
            f"{graph_name} was called with inputs it was not captured for",
            where="\n         ".join(problems),
            why="a graph is right for the sizes it states only: its control flow was decided by them",
            hint="call it with such sizes, or capture the model anew with an example of these",
        )

    kinds = [_is_wrong_kind(given[i], t) for i, t in enumerate(types)]
    reads = [
        ast.Assign([ast.Name(known[name].id, ast.Store())], _read(given[source.input], source))
        for name, source in found.items()
    ]
    plain = [(s.input, s.axis) for s in found.values() if (s.factor, s.offset) == (1, 0)]
    wrong: list[ast.expr] = [ast.Compare(known[n], [ast.Lt()], [ast.Constant(1)]) for n in found]
    for i, axis, size in _sizes(types):
        if (i, axis) not in plain and symbols_of(size) <= known.keys():
            wrong.append(ast.Compare(_size(given[i], axis), [ast.NotEq()], [expression(size, known)]))
    wrong += [ast.UnaryOp(ast.Not(), condition(guard, known)) for guard in guards]
    body = [*_refuse_if(kinds, given), *reads, *_unless_divided_by_zero(wrong, given)] or [ast.Pass()]
    knows = {"Tensor": torch.Tensor, "boolean": torch.bool, "refuse": refuse, **_NUMBERS}
    # What the function knows is a closure of it, so that it can be compiled anew.
    module = ast.parse(
        f"def make({', '.join(knows)}):\n def check_inputs({', '.join(given)}): pass\n return check_inputs"
    )
    maker = module.body[0]
    assert isinstance(maker, ast.FunctionDef)
    function = maker.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = body
    scope: dict[str, Any] = {"__name__": __name__}
    exec(compile(ast.fix_missing_locations(module), "archir check of inputs", "exec"), scope)
    check: Callable[..., None] = scope["make"](**knows)
    return check


def complaints(
    names: Sequence[str], types: Sequence[Type], guards: Sequence[Guard], values: Sequence[object]
) -> list[str]:
    """Return what is wrong with the values of some inputs, in words.

    Args:
        names: the names of the inputs.
        types: their types.
        guards: what their sizes have to satisfy.
        values: a tensor or number for each of them.
    """
    problems: list[str] = []
    for name, type_, value in zip(names, types, values, strict=True):
        if isinstance(type_, TensorType) and isinstance(value, torch.Tensor):
            problems += [] if _fits(type_, value) else [f"{name} is {_told(value)}, the graph takes {type_}"]
        elif isinstance(type_, TensorType) or isinstance(value, torch.Tensor):
            problems.append(f"{name} is a {type(value).__name__}, the graph takes {type_}")
    if problems:
        return problems
    shapes: list[list[Any]] = [list(v.shape) if isinstance(v, torch.Tensor) else [v] for v in values]
    sizes: dict[str, Any] = {}
    for symbol_, source in sources(types).items():
        sizes[symbol_] = (shapes[source.input][source.axis or 0] - source.offset) // source.factor
    for symbol_, size in sizes.items():
        problems += [f"{symbol_} is {size}, and a size is 1 or more"] if size < 1 else []
    for i, axis, size in _sizes(types):
        place = names[i] if axis is None else f"axis {axis} of {names[i]}"
        if symbols_of(size) <= sizes.keys():
            try:
                wanted = fold(size, sizes.__getitem__, int, compute)
            except GraphError as error:
                problems.append(f"{place} has no size: {size}: {error.what}")
                continue
            if shapes[i][axis or 0] != wanted:
                told = f"{size}, which is {wanted}" if symbols_of(size) else str(size)
                problems.append(f"{place} has the size {shapes[i][axis or 0]} instead of {told}")
    told = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    return problems + [f"{guard} does not hold for {told}" for guard in guards if not _holds(guard, sizes)]


def _holds(guard: Guard, sizes: Mapping[str, int]) -> bool:
    try:
        return guard.holds(sizes)
    except GraphError:
        return False  # a side of it has no value


def _is_wrong_kind(name: str, type_: Type) -> ast.expr:
    """Return the source of whether an input is no tensor of a kind of elements and a rank."""
    if isinstance(type_, ScalarType):
        return ast.parse(f"not isinstance({name}, {type_.kind})", mode="eval").body
    tests = [f"isinstance({name}, Tensor)", f"{name}.dim() == {len(type_.shape)}"]
    floating, complex_ = type_.dtype.is_floating_point, type_.dtype.is_complex
    tests += [f"{name}.is_floating_point()" if floating else f"not {name}.is_floating_point()"]
    if not floating:
        tests += [f"{name}.is_complex()" if complex_ else f"not {name}.is_complex()"]
        tests += [] if complex_ else [f"({name}.dtype == boolean) == {type_.dtype == torch.bool}"]
    return ast.parse(f"not ({' and '.join(tests)})", mode="eval").body


def _fits(type_: TensorType, value: torch.Tensor) -> bool:
    return value.dim() == len(type_.shape) and _kind(value.dtype) == _kind(type_.dtype)


def _kind(dtype: torch.dtype) -> str:
    kinds = {"floating": dtype.is_floating_point, "complex": dtype.is_complex, "bool": dtype == torch.bool}
    return next((kind for kind, found in kinds.items() if found), "integer")


def _told(value: torch.Tensor) -> str:
    return f"{dtype_name(value.dtype)}[{', '.join(map(str, value.shape))}]"


def _size(name: str, axis: int | None) -> ast.expr:
    return ast.parse(name if axis is None else f"{name}.size({axis})", mode="eval").body


def _read(name: str, source: Source) -> ast.expr:
    read = _size(name, source.axis)
    read = ast.BinOp(read, ast.Sub(), ast.Constant(source.offset)) if source.offset else read
    return ast.BinOp(read, ast.FloorDiv(), ast.Constant(source.factor)) if source.factor != 1 else read


def _unless_divided_by_zero(tests: list[ast.expr], given: Sequence[str]) -> list[ast.stmt]:
    """Refuse where one of the tests is true, or has no value since a size in it is divided by zero."""
    found = _refuse_if(tests, given)
    if not any(isinstance(part, ast.FloorDiv | ast.Mod) for test in tests for part in ast.walk(test)):
        return found
    refused = _refuse_if([ast.Constant(True)], given)
    handler = ast.ExceptHandler(ast.Name("ZeroDivisionError", ast.Load()), None, refused)
    return [ast.Try(found, [handler], [], [])]


def _refuse_if(tests: list[ast.expr], given: Sequence[str]) -> list[ast.stmt]:
    if not tests:
        return []
    call = ast.Expr(ast.Call(ast.Name("refuse", ast.Load()), [ast.Name(g, ast.Load()) for g in given], []))
    return [ast.If(ast.BoolOp(ast.Or(), tests) if len(tests) > 1 else tests[0], [call], [])]
