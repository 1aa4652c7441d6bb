"""Reads off an exported program what the sizes of its inputs have to satisfy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from traceback import FrameSummary

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

from archir.errors import CaptureError
from archir.ir.guards import Guard, fault
from archir.ir.types import as_size, symbol, symbols_of
from frontends.dynamic import DynamicAxis
from frontends.locations import TORCH
from frontends.sizes import plain, reduced

_NAMES = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Le: "<=", sympy.Ge: ">=", sympy.Lt: "<", sympy.Gt: ">"}
_TURNED = {"==": "==", "!=": "!=", "<=": ">=", ">=": "<=", "<": ">", ">": "<"}


def shape_env(program: ExportedProgram) -> ShapeEnv | None:
    """Return what export noted about the sizes of a program, None if no input has a size that may vary."""
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt) and size.node.expr.free_symbols:
                return size.node.shape_env  # type: ignore[no-any-return]
    return None


def _given(program: ExportedProgram) -> list[torch.Tensor]:
    """Return the tensors among the inputs of a program that a user gives, without data."""
    specs, nodes = program.graph_signature.input_specs, program.graph.find_nodes(op="placeholder")
    users = [node for spec, node in zip(specs, nodes, strict=True) if spec.kind is InputKind.USER_INPUT]
    return [node.meta["val"] for node in users if isinstance(node.meta.get("val"), torch.Tensor)]


def has_batch(program: ExportedProgram) -> bool:
    """Say whether the first axis of any input has a size that may vary."""
    firsts = (tensor.shape[0] for tensor in _given(program) if tensor.dim())
    return any(isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols) for size in firsts)


def fixed_axes(program: ExportedProgram, axes: Sequence[DynamicAxis]) -> list[DynamicAxis]:
    """Return those of some axes that have to be dynamic and are not."""
    tensors = _given(program)

    def is_fixed(axis: DynamicAxis) -> bool:
        size = tensors[axis.tensor].shape[axis.axis]
        return not (isinstance(size, torch.SymInt) and size.node.expr.free_symbols)

    return [axis for axis in axes if axis.required and is_fixed(axis)]


def fixed_at(program: ExportedProgram, size: int | None = None) -> str:
    """Return the line that gave a size of an input, meant to be dynamic, a single value; nothing if it is not known.

    Args:
        program: the program.
        size: that value, if it is known.
    """
    modes = (node.meta["val"].fake_mode for node in program.graph.nodes if hasattr(node.meta.get("val"), "fake_mode"))
    env = next((mode.shape_env for mode in modes if mode.shape_env is not None), None)
    if env is None:
        return ""
    for guard in env.guards:
        relation, named = guard.expr, {s: symbol(str(s)) for s in guard.expr.free_symbols}
        alone = Conjunction()
        if len(named) == 1:
            with contextlib.suppress(CaptureError):
                alone.add(_renamed(relation, named))
        single = single_value(alone.guards())
        if single is not None and size in (None, single.right):
            return line_of(guard.sloc.framework_loc)
    replaced = {s: value for s, value in env.replacements.items() if value.is_Integer and size in (None, int(value))}
    return next((line_of(env.replacements_slocs[s].framework_loc) for s in replaced if s in env.replacements_slocs), "")


def single_value(guards: Sequence[Guard]) -> Guard | None:
    """Return a guard that leaves a size a single value."""
    return next(
        (
            g
            for g in guards
            if g.relation == "=="
            and symbols_of(g.right) == frozenset() != g.symbols
            and not isinstance(g.left, int)
            and g.left.is_Symbol
        ),
        None,
    )


def divides(guard: Guard) -> bool:
    """Say whether a guard is about two sizes of which one is divided by the other, as those of reshaped batches are."""
    if len(guard.symbols) < 2:
        return False
    sides = [sympy.sympify(side) for side in (guard.left, guard.right)]
    under = [part.args[1] for side in sides for part in side.atoms(sympy.Mod)]
    under += [part.base for side in sides for part in side.atoms(sympy.Pow) if part.exp.is_negative]
    return any(part.free_symbols for part in under)


def line_of(frame: FrameSummary | str | None) -> str:
    """Return a line of source, with its file and number."""
    return f"{frame.filename}:{frame.lineno}: {frame.line}" if isinstance(frame, FrameSummary) else str(frame or "")


@dataclass(frozen=True, slots=True)
class Assumption:
    """A relation between sizes that a graph takes for granted.

    Attributes:
        relation: a relation of sympy.
        where: the line it comes from.
        doubtful: the name of a symbol if all it says is that this is not 1, and nobody but torch asked for that: its
            kernels single out a size of 1 for the strides of what they make, which mostly changes nothing.
    """

    relation: object
    where: str = ""
    doubtful: str | None = None


def assumptions(program: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Symbol]) -> Iterator[Assumption]:
    """Yield every relation the sizes of the inputs satisfied when a program was exported.

    Args:
        program: the program.
        names: what the symbols of its inputs are called in the graph.
    """
    env = shape_env(program)
    if env is None:
        return
    for old, name in names.items():
        known = program.range_constraints.get(old, env.var_to_range.get(old))
        if known is not None and known.lower.is_Integer and known.lower > 1:
            doubtful = name.name if known.lower == 2 else None
            yield Assumption(sympy.Ge(name, known.lower, evaluate=False), doubtful=doubtful)
        if known is not None and known.upper.is_Integer:
            yield Assumption(sympy.Le(name, known.upper, evaluate=False))
    for guard in env.guards:
        relation = env.replace(guard.expr)
        if not any(symbol_is_type(s, (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)) for s in relation.free_symbols):
            renamed, where = _renamed(relation, names), line_of(guard.sloc.framework_loc)
            yield Assumption(renamed, where, _not_one(renamed) if where.startswith(TORCH) else None)


def _not_one(relation: sympy.Basic) -> str | None:
    """Return the name of the symbol if all that a relation says is that it is not 1."""
    if len(relation.free_symbols) != 1:
        return None
    (size,) = relation.free_symbols
    alone = Conjunction()
    with contextlib.suppress(CaptureError):
        alone.add(relation)
    return size.name if alone.guards() == (Guard(size, ">=", 2),) else None


@lru_cache(maxsize=1024)
def guards_of(assumed: tuple[Assumption, ...], without: tuple[str, ...] = ()) -> tuple[Guard, ...]:
    """Return what is assumed, in the simplest terms.

    Args:
        assumed: the assumptions.
        without: symbols of which doubtful ones are left out.

    Raises:
        CaptureError: a guard cannot say it.
    """
    found = Conjunction()
    for assumption in assumed:
        if assumption.doubtful is None or assumption.doubtful not in without:
            found.add(assumption.relation, assumption.where)
    return found.divided().guards()


def _renamed(relation: sympy.Basic, names: Mapping[sympy.Symbol, sympy.Symbol]) -> sympy.Basic:
    if isinstance(relation, sympy.core.relational.Relational):
        return relation.func(plain(relation.lhs, names), plain(relation.rhs, names), evaluate=False)
    if isinstance(relation, sympy.logic.boolalg.BooleanFunction):
        return relation.func(*(_renamed(part, names) for part in relation.args), evaluate=False)
    return relation


@dataclass
class Conjunction:
    """Relations between sizes while they are gathered, in the simplest terms.

    Attributes:
        low: the smallest value of a symbol.
        high: the largest value of a symbol.
        others: relations that are no bounds of one symbol.
    """

    low: dict[sympy.Symbol, int] = field(default_factory=dict)
    high: dict[sympy.Symbol, int] = field(default_factory=dict)
    others: list[Guard] = field(default_factory=list)

    def add(self, relation: object, where: str = "") -> None:
        """Add a relation.

        Args:
            relation: a relation of sympy.
            where: the line it comes from.

        Raises:
            CaptureError: a guard cannot say it.
        """
        if isinstance(relation, sympy.And):
            for part in relation.args:
                self.add(part, where)
        elif isinstance(relation, sympy.Not) and isinstance(relation.args[0], sympy.core.relational.Relational):
            self.add(relation.args[0].negated, where)
        elif relation not in (sympy.true, True):
            kind = _NAMES.get(type(relation))
            if kind is None:
                raise _unsayable(relation, where)
            self._add(relation.lhs - relation.rhs, kind, where)  # type: ignore[attr-defined]

    def divided(self) -> Conjunction:
        """Return the same with quotients of what is divided without rest for what they are."""
        exact: dict[sympy.Expr, sympy.Expr] = {}
        without_rest = [g for g in self.others if (g.relation, g.right) == ("==", 0) and isinstance(g.left, sympy.Mod)]
        for size, by in (sympy.sympify(guard.left).args for guard in without_rest):
            for part in sympy.divisors(by)[1:] if by.is_Integer else ():
                exact |= {sympy.floor(size / part): size / part, sympy.Mod(size, part): sympy.Integer(0)}
        if not exact:
            return self
        found = Conjunction(dict(self.low), dict(self.high))
        for guard in self.others:
            left, right = sympy.sympify(guard.left), sympy.sympify(guard.right)
            other = sympy.expand((left - right).xreplace(exact))
            if guard in without_rest or other == left - right or other.has(sympy.floor):
                found.others.append(guard)
            else:
                found._add(other, guard.relation, "")
        return found

    def guards(self) -> tuple[Guard, ...]:
        """Return all of it."""
        found: list[Guard] = []
        unequal = {(g.left, g.right) for g in self.others if g.relation == "!="}
        for size in sorted({*self.low, *self.high}, key=str):
            low, high = self.low.get(size, 1), self.high.get(size)
            while (size, low) in unequal:
                low += 1
            while high is not None and (size, high) in unequal:
                high -= 1
            if low == high:
                found.append(Guard(size, "==", low))
                continue
            found += [Guard(size, ">=", low)] if low > 1 else []
            found += [Guard(size, "<=", high)] if high is not None else []
        return (*found, *(g for g in dict.fromkeys(self.others) if not self._follows(g)))

    def _follows(self, guard: Guard) -> bool:
        """Say whether a relation follows from the bounds of the symbols in it."""
        above = {
            s: self.low.get(s, 1) + sympy.Dummy(integer=True, nonnegative=True) for s in map(symbol, guard.symbols)
        }
        gap = sympy.expand((sympy.sympify(guard.left) - guard.right).xreplace(above))
        holds = {">": gap.is_positive, ">=": gap.is_nonnegative, "<": gap.is_negative, "<=": gap.is_nonpositive}
        if holds.get(guard.relation) or (guard.relation == "!=" and (gap.is_positive or gap.is_negative)):
            return True
        if guard.relation != "!=" or not isinstance(guard.left, sympy.Symbol) or not isinstance(guard.right, int):
            return False
        numbers = {g.right for g in self.others if g.relation == "!=" and g.left == guard.left}
        low, high = self.low.get(guard.left, 1), self.high.get(guard.left)
        while low in numbers:
            low += 1
        return guard.right < low or (high is not None and guard.right >= high)

    def _add(self, difference: sympy.Expr, kind: str, where: str) -> None:
        """Add that a difference has a relation to zero."""
        plainer = reduced(difference)
        if kind == "==" and (rests := _rests(difference)):
            for rest in rests:
                self._add(rest, "==", where)
            return
        for extreme, among, beyond in ((sympy.Min, sympy.Le, sympy.Gt), (sympy.Max, sympy.Ge, sympy.Lt)):
            for part in plainer.atoms(extreme) if kind in ("==", "!=") else ():
                for one in part.args:
                    others = set(part.args) - {one}
                    alone = sympy.expand(plainer - plainer.coeff(part) * (part - one)) == 0
                    if alone and plainer.coeff(part).is_number and (kind == "==" or len(others) == 1):
                        # `Min(a, b) == a` says `a <= b`, and `Min(a, b) != a` that `a > b`.
                        for other in others:
                            self.add((among if kind == "==" else beyond)(one, other, evaluate=False), where)
                        return
        if plainer.is_Rational:
            if not Guard(int(sympy.fraction(plainer)[0]), kind, 0).holds({}):
                raise _unsayable(f"{difference} {kind} 0", where)
            return
        _, plainer = plainer.primitive()
        constant, rest = plainer.as_coeff_Add()
        factor, term = rest.as_coeff_Mul()
        bound = -constant / factor
        if term.is_Symbol:
            self._bound(term, _TURNED[kind] if factor < 0 else kind, bound)
        elif isinstance(term, sympy.Mod) and bound.is_Integer:
            self._keep(Guard(term, _TURNED[kind] if factor < 0 else kind, int(bound)), where)
        else:
            _, difference = sympy.expand(difference).primitive()
            right = -sympy.Add(*(t for t in sympy.Add.make_args(difference) if t.could_extract_minus_sign()))
            self._keep(Guard(as_size(difference + right), kind, as_size(right)), where)

    def _bound(self, size: sympy.Symbol, kind: str, bound: sympy.Rational) -> None:
        if kind == "!=":
            self.low.setdefault(size, 1)
            if bound.is_Integer:
                self.others.append(Guard(size, kind, int(bound)))
            return
        below, above = int(sympy.floor(bound)), int(sympy.ceiling(bound))
        if kind in (">=", ">", "=="):
            self.low[size] = max(self.low.get(size, 1), below + 1 if kind == ">" else above)
        if kind in ("<=", "<", "=="):
            high = above - 1 if kind == "<" else below
            self.high[size] = min(self.high.get(size, high), high)

    def _keep(self, guard: Guard, where: str) -> None:
        problem = fault(guard)
        if problem:
            raise _unsayable(guard, where, problem)
        self.others.append(guard)


def _rests(difference: sympy.Expr) -> list[sympy.Expr]:
    """Return the rests that have to be zero for a difference such as `a*b - 4*floor(a/2)*floor(b/2)` to be zero.

    A size is never less than a quotient of it, rounded down, times what it was divided by; so products of several are
    the same only where there are no rests. There are none if the difference is no such one.
    """
    terms = sympy.Add.make_args(difference)
    quotients = sorted(difference.atoms(sympy.floor), key=str)
    if len(terms) != 2 or len(quotients) < 2:
        return []
    rests: list[sympy.Expr] = []
    for part in quotients:
        above, under = sympy.fraction(sympy.together(part.args[0]))
        if not (above.is_Symbol and under.is_Integer):
            return []
        rests.append(sympy.Mod(above, under))
    gap = difference.xreplace({part: part.args[0] for part in quotients})
    one_side = any(not term.has(sympy.floor) for term in terms)
    return rests if one_side and sympy.expand(gap) == 0 else []


def _unsayable(relation: object, where: str, why: str = "") -> CaptureError:
    return CaptureError(
        "the model decides by the sizes of its inputs in a way a graph cannot say",
        where=where,
        why=f"it holds for {relation} only" + (f": {why}" if why else ""),
        hint="decide by comparing sizes with numbers, or capture one batch size, static_batch=True",
    )


def excluded_by(guards: Sequence[Guard], sizes: Mapping[str, int]) -> Guard | None:
    """Return a guard that does not hold for given sizes."""
    return next((guard for guard in guards if not guard.holds(sizes)), None)
