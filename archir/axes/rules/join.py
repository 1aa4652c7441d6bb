"""Axis rules of concatenation and cutting: the axis is a sum."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, SizeOf, Spelling
from archir.axes.terms import Atom, Sum, Term, freeze, resolve, unify
from archir.ir.node import Argument


def cat(c: Context) -> Sequence[Sequence[Term]]:
    """`cat`: the axis is the sum of the operands' axes."""
    operands = [o for o in c.operands("tensors") if len(o) > 1 or (o and o[0].size)]
    rank = len(operands[0])
    dim = c.integer("dim") % rank
    for other in operands[1:]:
        for d in range(rank):
            if d != dim:
                unify(operands[0][d], other[d])
    return [[Sum(o[d] for o in operands) if d == dim else resolve(operands[0][d]) for d in range(rank)]]


def stack(c: Context) -> Sequence[Sequence[Term]]:
    """`stack`: a new axis, one unit an operand."""
    operands = c.operands("tensors")
    for other in operands[1:]:
        c.unify_all(operands[0], other)
    result = [resolve(a) for a in operands[0]]
    result.insert(c.integer("dim") % (len(result) + 1), Atom(len(operands), "one unit for each stacked tensor"))
    return [result]


def split(c: Context) -> Sequence[Sequence[Term]]:
    """`split`, `chunk`: the axis is the sum of the parts."""
    x = c.operand("self")
    dim = c.integer("dim") % len(x)
    parts = [Atom(sizes[dim]) for sizes in c.sizes]
    unify(x[dim], Sum(parts))
    named = next(n for n in ("split_size", "split_sizes", "chunks", "indices") if n in c.node.arguments)
    given = c.node.arguments[named]
    if isinstance(given, int | tuple) and all(isinstance(g, int) for g in (given if isinstance(given, tuple) else ())):

        def spell(size: SizeOf) -> Spelling:
            sizes = tuple(map(size, parts))
            if sizes == tuple(p.size for p in parts):
                return Spelling({})
            return Spelling(
                {"split_sizes": sizes}, "aten.split_with_sizes.default", frozenset({named} - {"split_sizes"})
            )

        c.spell(spell)
    return [[*x[:dim], part, *x[dim + 1 :]] for part in parts]


def unbind(c: Context) -> Sequence[Sequence[Term]]:
    """`unbind`: each unit of the axis becomes a result."""
    x = c.operand("self")
    dim = c.integer("dim") % len(x)
    freeze(x[dim], "each of its units has a use of its own")
    return [[*x[:dim], *x[dim + 1 :]] for _ in c.sizes]


def select(c: Context) -> Sequence[Sequence[Term]]:
    """`select`: one unit of the axis, by position."""
    x = c.operand("self")
    dim = c.integer("dim") % len(x)
    freeze(x[dim], "one of its units is picked by position")
    return [[*x[:dim], *x[dim + 1 :]]]


def slice_(c: Context) -> Sequence[Sequence[Term]]:
    """`slice`, `narrow`: the axis is `before + kept + after`."""
    x = list(c.operand("self"))
    dim = c.integer("dim") % len(x)
    whole, kept = x[dim].size, c.sizes[0][dim]
    if kept == whole:
        return [x]
    narrow = c.node.op.startswith("aten.narrow")
    if not narrow and c.node.argument("step") != 1:
        freeze(x[dim], "it is sliced with a stride")
        x[dim] = Atom(kept, "it is sliced with a stride")
        return [x]
    given: Argument = c.node.argument("start")
    if not isinstance(given, int | None):
        freeze(x[dim], "it is sliced at a run-time position")
        x[dim] = Atom(kept, "it is sliced at a run-time position")
        return [x]
    start = given or 0
    start = max(start + whole, 0) if start < 0 else start
    before, middle, after = Atom(start), Atom(kept), Atom(whole - start - kept)
    unify(x[dim], Sum((before, middle, after)))
    x[dim] = resolve(middle)

    def spell(size: SizeOf) -> Spelling:
        first, count = size(before), size(middle)
        if narrow:
            return Spelling({"start": first, "length": count})
        return Spelling({"start": first, "end": first + count})

    c.spell(spell)
    return [x]


def index_select(c: Context) -> Sequence[Sequence[Term]]:
    """`index_select`, `gather`: units picked by an index tensor."""
    x = list(c.operand("self"))
    dim = c.integer("dim")
    freeze(x[dim], "its units are picked by an index tensor")
    x[dim] = Atom(c.sizes[0][dim], "picked by an index tensor")
    return [x]


def pad(c: Context) -> Sequence[Sequence[Term]]:
    """`pad`: a padded axis is `before + axis + after`, whose ends are fixed."""
    x = list(c.operand("self"))
    amounts = c.integers("pad")
    for i in range(len(amounts) // 2):
        dim, before, after = len(x) - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if before < 0 or after < 0 or (c.node.argument("mode") != "constant" and before + after):
            freeze(x[dim], "it is padded by position")
            x[dim] = Atom(c.sizes[0][dim], "it is padded by position")
        elif before + after:
            ends = (Atom(before, "padding"), Atom(after, "padding"))
            x[dim] = Sum((ends[0], x[dim], ends[1]))
    return [x]


RULES: dict[str, Rule] = {
    "aten.cat.default": cat,
    "aten.concat.default": cat,
    "aten.stack.default": stack,
    "aten.split.Tensor": split,
    "aten.split.sizes": split,
    "aten.split_with_sizes.default": split,
    "aten.chunk.default": split,
    "aten.unbind.int": unbind,
    "aten.select.int": select,
    "aten.slice.Tensor": slice_,
    "aten.narrow.default": slice_,
    "aten.index_select.default": index_select,
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": pad,
}
