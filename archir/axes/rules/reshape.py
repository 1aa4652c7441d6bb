"""Axis rules of operators that only move data: reshapes, permutations, expansion."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, SizeOf, Spelling, Unknown
from archir.axes.terms import Atom, Product, Term, freeze, leaves, regroup, unit
from archir.ir.node import Argument, Node, Value


def reshape(c: Context) -> Sequence[Sequence[Term]]:
    """`view`, `reshape`, `flatten`, `unflatten`: the same units in row-major order."""
    x = c.operand("self")
    result = regroup(x, c.sizes[0])
    if result is None:
        raise Unknown("the sizes of the reshape are not known")
    if c.node.op == "aten.unflatten.int":
        _spell_sizes(c, "sizes", result, first=c.integer("dim") % len(x))
    else:
        _spell_sizes(c, "size" if "size" in c.node.arguments else "shape", result)
    return [result]


def reshape_as(c: Context) -> Sequence[Sequence[Term]]:
    """`view_as`, `reshape_as`."""
    (result,) = reshape(c)
    c.unify_all(result, c.operand("other"))
    return [result]


def expand(c: Context) -> Sequence[Sequence[Term]]:
    """`expand`: an axis of size one is repeated, others stay."""
    x = c.operand("self")
    new = c.units(0)
    padded = [unit()] * (len(new) - len(x)) + list(x)
    result = [a if a.size == n.size else n for a, n in zip(padded, new, strict=True)]
    _spell_sizes(c, "size", result)
    return [result]


def expand_as(c: Context) -> Sequence[Sequence[Term]]:
    """`expand_as`."""
    return [c.broadcast(c.operand("self"), c.operand("other"))]


def repeat(c: Context) -> Sequence[Sequence[Term]]:
    """`repeat`, `tile`: an axis becomes `count * axis`."""
    x, name = c.operand("self"), "repeats" if "repeats" in c.node.arguments else "dims"
    listed = c.node.argument(name)
    given = listed if isinstance(listed, tuple) else (listed,)
    rank = max(len(x), len(given))
    padded = [unit()] * (rank - len(x)) + list(x)
    counts = (1,) * (rank - len(given)) + given
    result: list[Term] = []
    repeated: list[Term] = []
    for axis, count, size, shown in zip(padded, counts, c.sizes[0], c.node.tensor_type().shape, strict=True):
        times = Atom(size // axis.size, "" if isinstance(count, int) and isinstance(shown, int) else "a run-time size")
        result.append(axis if times.size == 1 else Product((times, axis)))
        repeated.append(times)

    def spell(size: SizeOf) -> Spelling:
        def entry(count: Argument, times: Term) -> Argument:
            return count if isinstance(count, Value) or size(times) == times.size else size(times)

        return Spelling({name: tuple(map(entry, counts, repeated))})

    c.spell(spell)
    return [result]


def _spell_sizes(c: Context, name: str, axes: Sequence[Term], first: int = 0) -> None:
    """Let the constant entries of a list of sizes follow the axes from `first` on.

    -1 stays, and so does a run-time size unless a width in it changes: then it becomes -1. There is only one -1, so
    of several entries that may need it all are frozen.
    """
    given = c.node.arguments.get(name)
    if not isinstance(given, tuple):
        return
    shape = c.node.tensor_type().shape[first:]
    entries = list(zip(given, axes[first:], shape, strict=False))
    run_time = [(argument, axis) for argument, axis, n in entries if isinstance(argument, Value) or type(n) is not int]
    changing = [axis for argument, axis in run_time if not all(atom.reason for atom in leaves(axis))]
    open_ended = {id(axis) for axis in changing} | {id(axis) for argument, axis in run_time if argument == -1}
    for axis in changing if len(open_ended) > 1 else ():
        freeze(axis, "one of two sizes of a reshape that are only known at run time")

    def spell(size: SizeOf) -> Spelling:
        torn = any(isinstance(argument, Value) and size(axis) != axis.size for argument, axis, _ in entries)

        def entry(argument: Argument, axis: Term, static: bool) -> Argument:
            if isinstance(argument, Value):
                return argument if size(axis) == axis.size else -1
            return argument if argument == -1 and not (torn and static) else size(axis)

        return Spelling({name: tuple(entry(argument, axis, isinstance(n, int)) for argument, axis, n in entries)})

    c.spell(spell)


def permute(c: Context) -> Sequence[Sequence[Term]]:
    """`permute`, `transpose`, `T`, `movedim`: the axes in another order."""
    x = c.operand("self")
    return [[x[d] for d in axis_order(c.node, len(x))]]


def axis_order(node: Node, rank: int) -> list[int]:
    """Return which axis of the operand each axis of the result is, for the operators in `PERMUTATIONS`."""
    name, arguments = node.op.split(".")[1], dict(node.arguments)
    order = list(range(rank))
    if name == "numpy_T":
        return order[::-1]
    if name == "permute":
        return [d % rank for d in _integers(arguments["dims"])]
    if name in ("movedim", "moveaxis"):
        source, target = ([d % rank for d in _integers(arguments[n])] for n in ("source", "destination"))
        placed, rest = dict(zip(target, source, strict=True)), iter(d for d in order if d not in source)
        return [placed[d] if d in placed else next(rest) for d in order]
    if rank > 1:
        a, b = [d for n, v in arguments.items() if n != "self" for d in _integers(v)] or (-2, -1)
        order[a], order[b] = order[b], order[a]
    return order


def _integers(argument: Argument) -> list[int]:
    parts = argument if isinstance(argument, tuple) else (argument,)
    return [d for d in parts if isinstance(d, int)]


def squeeze(c: Context) -> Sequence[Sequence[Term]]:
    """`squeeze`: axes of size one vanish, but a width does not when its last unit but one is removed."""
    x = c.operand("self")
    named = range(len(x)) if c.node.op == "aten.squeeze.default" else [d % len(x) for d in c.integers("dim")]
    gone = tuple(d for d in named if x[d].size == 1)
    kept = [a for d, a in enumerate(x) if d not in gone]

    def spell(size: SizeOf) -> Spelling:
        if all(size(x[d]) > 1 for d in named if d not in gone):
            return Spelling({})
        return Spelling({"dim": gone}, "aten.squeeze.dims")

    c.spell(spell)
    return [kept]


def unsqueeze(c: Context) -> Sequence[Sequence[Term]]:
    """`unsqueeze`: a new axis of size one."""
    x = list(c.operand("self"))
    x.insert(c.integer("dim") % (len(x) + 1), unit())
    return [x]


def repeat_interleave(c: Context) -> Sequence[Sequence[Term]]:
    """`repeat_interleave` with a constant count: the axis becomes `axis * count`."""
    x, count = list(c.operand("self")), c.integer("repeats")
    dim = c.integer("dim")
    result = x[dim] = Product((x[dim], Atom(count, "a repeat count")))
    if c.node.argument("output_size") is not None:
        c.spell(lambda size: Spelling({"output_size": size(result)}))
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


def triangle(c: Context) -> Sequence[Sequence[Term]]:
    """`tril`, `triu`: which elements of the last two axes stay depends on their positions."""
    x = c.operand("self")
    c.freeze(x[-2:], f"its order matters to {c.node.op.split('.')[1]}")
    return [x]


PERMUTATIONS = (
    *("aten.permute.default", "aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default"),
    *("aten.t.default", "aten.mT.default", "aten.numpy_T.default"),
    *("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int", "aten.moveaxis.intlist"),
)
"""Operators that only change the order of axes."""

RULES: dict[str, Rule] = {
    **{f"aten.{op}.default": reshape for op in ("view", "reshape", "_unsafe_view", "ravel")},
    **{f"aten.{op}.default": reshape_as for op in ("view_as", "reshape_as")},
    "aten.flatten.using_ints": reshape,
    "aten.unflatten.int": reshape,
    "aten.expand.default": expand,
    "aten.broadcast_to.default": expand,
    "aten.expand_as.default": expand_as,
    **dict.fromkeys(PERMUTATIONS, permute),
    **{f"aten.squeeze.{o}": squeeze for o in ("default", "dim", "dims")},
    "aten.unsqueeze.default": unsqueeze,
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.repeat.default": repeat,
    "aten.tile.default": repeat,
    **{
        f"aten.{op}": same
        for op in (
            "contiguous.default",
            "clone.default",
            "detach.default",
            "alias.default",
            "lift_fresh.default",
            "lift_fresh_copy.default",
            "_to_copy.default",
            "to.dtype",
            "to.device",
            "to.dtype_layout",
            "to.other",
            "type_as.default",
            "dropout.default",
            "feature_dropout.default",
            "feature_alpha_dropout.default",
            "alpha_dropout.default",
        )
    },
    "aten.roll.default": roll,
    "aten.flip.default": roll,
    "aten.cumsum.default": roll,
    "aten.cumprod.default": roll,
    "aten.logcumsumexp.default": roll,
    "aten.sort.default": roll,
    "aten.tril.default": triangle,
    "aten.triu.default": triangle,
}
