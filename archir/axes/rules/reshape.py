"""Axis rules of operators that only move data: reshapes, permutations, expansion."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, SizeOf, Spelling, Unknown
from archir.axes.terms import Atom, Term, regroup, unit
from archir.ir.node import Argument, Value


def reshape(c: Context) -> Sequence[Sequence[Term]]:
    """`view`, `reshape`, `flatten`, `unflatten`: the same units in row-major order."""
    x = c.operand("self")
    result = regroup(x, c.sizes[0])
    if result is None:
        raise Unknown("the sizes of the reshape are not known")
    _spell_sizes(c, "size" if "size" in c.node.arguments else "shape", result)
    if c.node.op == "aten.unflatten.int":
        first = c.integer("dim") % len(x)
        parts = result[first : first + len(result) - len(x) + 1]
        _spell_sizes(c, "sizes", parts)
    return [result]


def expand(c: Context) -> Sequence[Sequence[Term]]:
    """`expand`: an axis of size one is repeated, others stay."""
    x = c.operand("self")
    padded = [unit()] * (len(c.sizes[0]) - len(x)) + list(x)
    result = [a if a.size == n else Atom(n) for a, n in zip(padded, c.sizes[0], strict=True)]
    _spell_sizes(c, "size", result)
    return [result]


def expand_as(c: Context) -> Sequence[Sequence[Term]]:
    """`expand_as`."""
    return [c.broadcast(c.operand("self"), c.operand("other"))]


def _spell_sizes(c: Context, name: str, axes: Sequence[Term]) -> None:
    """Let the constant entries of a list of sizes follow the axes.

    -1 stays, and so does a run-time size unless a width in it changes: then it becomes -1.
    """
    given = c.node.arguments.get(name)
    if not isinstance(given, tuple):
        return
    entries = list(zip(given, axes, strict=True))

    def spell(size: SizeOf) -> Spelling:
        def entry(argument: Argument, axis: Term) -> Argument:
            if isinstance(argument, Value):
                return argument if size(axis) == axis.size else -1
            return argument if argument == -1 else size(axis)

        return Spelling({name: tuple(entry(argument, axis) for argument, axis in entries)})

    c.spell(spell)


def permute(c: Context) -> Sequence[Sequence[Term]]:
    """`permute`."""
    x = c.operand("self")
    return [[x[d] for d in c.integers("dims")]]


def transpose(c: Context) -> Sequence[Sequence[Term]]:
    """`transpose`, `swapaxes`, `t`, `mT`: two axes change places."""
    x = list(c.operand("self"))
    names = [n for n in c.node.arguments if n != "self"]
    a, b = (c.integer(n) for n in names) if names else (-2, -1)
    if len(x) > 1:
        x[a], x[b] = x[b], x[a]
    return [x]


def movedim(c: Context) -> Sequence[Sequence[Term]]:
    """`movedim`, `moveaxis`."""
    x = c.operand("self")
    source = [d % len(x) for d in c.integers("source")]
    target = [d % len(x) for d in c.integers("destination")]
    rest = iter(d for d in range(len(x)) if d not in source)
    placed = dict(zip(target, source, strict=True))
    return [[x[placed[d] if d in placed else next(rest)] for d in range(len(x))]]


def squeeze(c: Context) -> Sequence[Sequence[Term]]:
    """`squeeze`: axes of size one vanish."""
    x = c.operand("self")
    dims = range(len(x)) if c.node.op == "aten.squeeze.default" else [d % len(x) for d in c.integers("dim")]
    return [[a for i, a in enumerate(x) if not (i in dims and a.size == 1)]]


def unsqueeze(c: Context) -> Sequence[Sequence[Term]]:
    """`unsqueeze`: a new axis of size one."""
    x = list(c.operand("self"))
    x.insert(c.integer("dim") % (len(x) + 1), unit())
    return [x]


def repeat_interleave(c: Context) -> Sequence[Sequence[Term]]:
    """`repeat_interleave` with a constant count: the axis becomes `axis * count`."""
    x, count = list(c.operand("self")), c.integer("repeats")
    dim = c.integer("dim")
    result = regroup([x[dim], Atom(count, "a repeat count")], [x[dim].size * count])
    if result is None:
        raise Unknown("the repeats are not constant")
    x[dim] = result[0]
    return [x]


def same(c: Context) -> Sequence[Sequence[Term]]:
    """Operators whose result has the axes of their first operand."""
    name = next(iter(c.node.arguments))
    return [c.operand(name)]


def roll(c: Context) -> Sequence[Sequence[Term]]:
    """`roll`, `flip`, `cumsum`, `sort`: the order of the units along the named axes matters."""
    x = c.operand("self")
    named = next((n for n in ("dim", "dims") if n in c.node.arguments), None)
    given: Argument = -1 if c.node.op == "aten.sort.default" else ()
    if named is not None:
        given = c.node.arguments[named]
    dims = given if isinstance(given, tuple) else (given,)
    for dim in dims or range(len(x)):
        c.freeze([x[dim]] if isinstance(dim, int) else x, f"its order matters to {c.node.op.split('.')[1]}")
    return [x for _ in c.sizes]


RULES: dict[str, Rule] = {
    **{f"aten.{op}.default": reshape for op in ("view", "reshape", "_unsafe_view")},
    "aten.flatten.using_ints": reshape,
    "aten.unflatten.int": reshape,
    "aten.expand.default": expand,
    "aten.expand_as.default": expand_as,
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.swapaxes.default": transpose,
    "aten.t.default": transpose,
    "aten.numpy_T.default": transpose,
    "aten.mT.default": transpose,
    "aten.movedim.int": movedim,
    "aten.movedim.intlist": movedim,
    **{f"aten.squeeze.{o}": squeeze for o in ("default", "dim", "dims")},
    "aten.unsqueeze.default": unsqueeze,
    "aten.repeat_interleave.self_int": repeat_interleave,
    **{
        f"aten.{op}": same
        for op in (
            "contiguous.default",
            "clone.default",
            "detach.default",
            "alias.default",
            "lift_fresh_copy.default",
            "to.dtype",
            "to.device",
            "to.dtype_layout",
            "to.other",
            "type_as.default",
            "dropout.default",
            "feature_dropout.default",
            "alpha_dropout.default",
        )
    },
    "aten.roll.default": roll,
    "aten.flip.default": roll,
    "aten.cumsum.default": roll,
    "aten.cumprod.default": roll,
    "aten.sort.default": roll,
}
