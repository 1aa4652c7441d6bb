"""Axis rules of concatenation and cutting: the axis is a sum."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, SizeOf, Spelling
from archir.axes.terms import Atom, Sum, Term, freeze, unify
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
    return [[Sum(o[d] for o in operands) if d == dim else operands[0][d] for d in range(rank)]]


def stack(c: Context) -> Sequence[Sequence[Term]]:
    """`stack`: a new axis, one unit an operand."""
    operands = c.operands("tensors")
    for other in operands[1:]:
        c.unify_all(operands[0], other)
    result = list(operands[0])
    result.insert(c.integer("dim") % (len(result) + 1), Atom(len(operands), "one unit for each stacked tensor"))
    return [result]


def split(c: Context) -> Sequence[Sequence[Term]]:
    """`split`, `chunk`, `tensor_split`: the axis is the sum of the parts."""
    x = c.operand("self")
    dim = c.integer("dim") % len(x)
    named = next(n for n in ("split_size", "split_sizes", "chunks", "sections", "indices") if n in c.node.arguments)
    c.integers(named)
    parts = [Atom(sizes[dim]) for sizes in c.sizes]
    unify(x[dim], Sum(parts))

    def spell(size: SizeOf) -> Spelling:
        sizes = tuple(map(size, parts))
        if sizes == tuple(p.size for p in parts):
            return Spelling({})
        dropped = frozenset({named} - {"split_sizes"})
        return Spelling({"split_sizes": sizes}, "aten.split_with_sizes.default", dropped)

    c.spell(spell)
    return [[*x[:dim], part, *x[dim + 1 :]] for part in parts]


def glu(c: Context) -> Sequence[Sequence[Term]]:
    """`glu`: one half of the axis gates the other, unit by unit."""
    x = c.operand("self")
    dim = c.integer("dim") % len(x)
    half = Atom(x[dim].size // 2)
    unify(x[dim], Sum((half, half)))
    return [[*x[:dim], half, *x[dim + 1 :]]]


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
    narrow = c.node.op.startswith("aten.narrow")
    given: Argument = c.node.argument("start")
    if not narrow and c.node.argument("step") != 1:
        return [_stuck(x, dim, kept, "it is sliced with a stride")]
    if not isinstance(given, int | None):
        return [_stuck(x, dim, kept, "it is sliced at a run-time position")]
    start = given or 0
    start = max(start + whole, 0) if start < 0 else min(start, whole)
    before, middle, after = Atom(start), Atom(kept), Atom(whole - start - kept)
    unify(x[dim], Sum((before, middle, after)))
    x[dim] = middle

    def spell(size: SizeOf) -> Spelling:
        if all(size(part) == part.size for part in (before, middle, after)):
            return Spelling({})
        first, count = size(before), size(middle)
        if narrow:
            return Spelling({"start": first, "length": count})
        return Spelling({"start": first, "end": first + count})

    c.spell(spell)
    return [x]


def _stuck(x: list[Term], dim: int, size: int, reason: str) -> list[Term]:
    """Return axes one of which is frozen on both sides of the call."""
    freeze(x[dim], reason)
    return [*x[:dim], Atom(size, reason), *x[dim + 1 :]]


def index_select(c: Context) -> Sequence[Sequence[Term]]:
    """`index_select`: units picked by an index tensor."""
    x = list(c.operand("self"))
    dim = c.integer("dim") % len(x)
    c.freeze(c.operand("index"), "its units are indices")
    return [_stuck(x, dim, c.sizes[0][dim], "its units are picked by an index tensor")]


def pad(c: Context) -> Sequence[Sequence[Term]]:
    """`pad`: a padded axis is `before + axis + after`, whose ends are fixed."""
    x = list(c.operand("self"))
    amounts = c.integers("pad" if "pad" in c.node.arguments else "padding")
    constant = c.node.op.startswith("aten.constant_pad") or (
        c.node.op == "aten.pad.default" and c.node.argument("mode") == "constant"
    )
    for i in range(len(amounts) // 2):
        dim, before, after = len(x) - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if before < 0 or after < 0 or (before + after and not constant):
            x = _stuck(x, dim, c.sizes[0][dim], "it is padded by position")
        elif before + after:
            x[dim] = Sum((Atom(before, "padding"), x[dim], Atom(after, "padding")))
    return [x]


RULES: dict[str, Rule] = {
    "aten.cat.default": cat,
    "aten.concat.default": cat,
    "aten.concatenate.default": cat,
    "aten.stack.default": stack,
    "aten.split.Tensor": split,
    "aten.split.sizes": split,
    "aten.split_with_sizes.default": split,
    "aten.chunk.default": split,
    "aten.unsafe_split.Tensor": split,
    "aten.unsafe_chunk.default": split,
    "aten.tensor_split.sections": split,
    "aten.tensor_split.indices": split,
    "aten.glu.default": glu,
    "aten.unbind.int": unbind,
    "aten.select.int": select,
    "aten.slice.Tensor": slice_,
    "aten.narrow.default": slice_,
    "aten.index_select.default": index_select,
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": pad,
    **{f"aten.{kind}_pad{n}d.default": pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
}
