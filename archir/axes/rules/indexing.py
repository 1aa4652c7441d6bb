"""Axis rules of operators that pick or place units by index tensors or positions."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, SizeOf, Spelling, Unknown
from archir.axes.terms import Atom, Sum, Term, freeze, unify
from archir.ir.node import Argument, Value

PICKED = "its units are picked by an index tensor"


def index(c: Context) -> Sequence[Sequence[Term]]:
    """`x[i, :, j]`: indexed axes give way to those of the indices, in front unless they are neighbours."""
    x, given = c.operand("self"), c.node.argument("indices")
    places, picked, kept = _indexed(c, x, given)
    front = 0 if not _neighbours(places) else places[0]
    return [[*kept[:front], *picked, *kept[front:]]]


def index_put(c: Context) -> Sequence[Sequence[Term]]:
    """`x[i, :, j] = values`."""
    x, given = c.operand("self"), c.node.argument("indices")
    if isinstance(given, tuple) and len(given) == 1 and _is_mask(c, given[0]) and not c.operand("values"):
        # One number wherever the mask says so is pointwise.
        mask = c.axes_of(given[0])
        c.unify_all(x[: len(mask)], mask)
        return [x]
    places, picked, kept = _indexed(c, x, given)
    front = 0 if not _neighbours(places) else places[0]
    c.freeze(picked, "units with the same index meet")
    c.broadcast([*kept[:front], *picked, *kept[front:]], c.operand("values"))
    return [x]


def _indexed(c: Context, x: Sequence[Term], given: Argument) -> tuple[list[int], list[Term], list[Term]]:
    """Return the indexed axes, the axes of the broadcast indices, and the axes left alone."""
    indices = given if isinstance(given, tuple) else (given,)
    if any(i is not None and not isinstance(i, Value) for i in indices):
        raise Unknown("its indices are not tensors")
    if any(_is_mask(c, i) for i in indices):
        raise Unknown("its units are picked by a mask")
    places = [d for d, i in enumerate(indices) if i is not None]
    found = [c.axes_of(i) for i in indices if i is not None]
    for d in places:
        freeze(x[d], PICKED)
    picked = c.broadcast(*found)
    return places, list(picked), [a for d, a in enumerate(x) if d not in places]


def _is_mask(c: Context, argument: Argument) -> bool:
    return isinstance(argument, Value) and c.is_mask(argument)


def _neighbours(places: Sequence[int]) -> bool:
    return list(places) == list(range(places[0], places[-1] + 1))


def gather(c: Context) -> Sequence[Sequence[Term]]:
    """`gather`: `y[i][j] = x[index[i][j]][j]`; along the other axes units correspond where the sizes are equal."""
    x, chosen = c.operand("self"), c.operand("index" if "index" in c.node.arguments else "indices")
    _correspond(x, chosen, c.integer("dim") % max(len(x), 1))
    return [chosen]


def scatter(c: Context) -> Sequence[Sequence[Term]]:
    """`scatter`, `scatter_add`, `scatter_reduce`: units along an axis are placed by an index tensor."""
    x, chosen = c.operand("self"), c.operand("index")
    source = c.operand("src") if "src" in c.node.arguments else ()
    dim = c.integer("dim") % max(len(x), 1)
    _correspond(x, chosen, dim)
    if source:
        for a, b in zip(chosen, source, strict=True):
            if a.size == b.size:
                unify(a, b)
            else:
                freeze(b, "only a part of it is placed")
    return [x]


def _correspond(x: Sequence[Term], chosen: Sequence[Term], dim: int) -> None:
    for d, (a, b) in enumerate(zip(x, chosen, strict=True)):
        if d == dim:
            freeze(a, PICKED)
            freeze(b, "its units are indices")
        elif a.size == b.size:
            unify(a, b)
        else:
            freeze(a, "only a part of it is indexed")
            freeze(b, "only a part of it is indexed")


def index_add(c: Context) -> Sequence[Sequence[Term]]:
    """`index_add`, `index_copy`, `index_reduce`: slices along an axis are placed by an index vector."""
    x, source = c.operand("self"), c.operand("source")
    dim = c.integer("dim") % len(x)
    freeze(x[dim], PICKED)
    c.freeze(c.operand("index"), "its units are indices")
    for d, (a, b) in enumerate(zip(x, source, strict=True)):
        if d == dim:
            freeze(b, "its units are placed by an index vector")
        else:
            unify(a, b)
    return [x]


def select_scatter(c: Context) -> Sequence[Sequence[Term]]:
    """`select_scatter`: one unit of an axis is replaced, by position."""
    x, source = c.operand("self"), c.operand("src")
    dim = c.integer("dim") % len(x)
    freeze(x[dim], "one of its units is replaced by position")
    c.unify_all([a for d, a in enumerate(x) if d != dim], source)
    return [x]


def slice_scatter(c: Context) -> Sequence[Sequence[Term]]:
    """`slice_scatter`: the axis is `before + replaced + after`."""
    x, source = list(c.operand("self")), c.operand("src")
    dim = c.integer("dim") % len(x)
    for d in (d for d in range(len(x)) if d != dim):
        unify(x[d], source[d])
    whole, part = x[dim].size, source[dim].size
    start = c.node.argument("start")
    if c.node.argument("step") != 1 or not isinstance(start, int | None):
        c.freeze([x[dim], source[dim]], "it is replaced by position")
        return [x]
    first = min(max(start + whole, 0) if start and start < 0 else start or 0, whole - part)
    before, kept, after = Atom(first), source[dim], Atom(whole - first - part)
    unify(x[dim], Sum((before, kept, after)))

    def spell(size: SizeOf) -> Spelling:
        if all(size(part) == part.size for part in (before, kept, after)):
            return Spelling({})
        return Spelling({"start": size(before), "end": size(before) + size(kept)})

    c.spell(spell)
    return [x]


def embedding_bag(c: Context) -> Sequence[Sequence[Term]]:
    """`embedding_bag`: rows of a table are summed in bags; the vocabulary is fixed."""
    table = c.operand("weight")
    freeze(table[0], "a vocabulary")
    c.role([table[1]], "produced")
    for name in ("indices", "offsets", "per_sample_weights"):
        c.freeze(c.operand(name), "it counts what is put into bags")
    bags, *others = (c.fresh("it counts bags", i) for i in range(len(c.sizes)))
    return [[bags[0], table[1]], *others]


def one_hot(c: Context) -> Sequence[Sequence[Term]]:
    """`one_hot`: a new axis of classes."""
    return [[*c.operand("self"), *c.fresh("it counts classes")[-1:]]]


def unfold(c: Context) -> Sequence[Sequence[Term]]:
    """`unfold`: windows along an axis."""
    x = list(c.operand("self"))
    dim = c.integer("dimension") % len(x)
    freeze(x[dim], "windows are cut from it")
    made = c.fresh("it counts windows")
    x[dim] = made[dim]
    return [[*x, made[-1]]]


RULES: dict[str, Rule] = {
    "aten.index.Tensor": index,
    "aten.index_put.default": index_put,
    "aten.gather.default": gather,
    "aten.take_along_dim.default": gather,
    **{f"aten.scatter.{o}": scatter for o in ("src", "value", "reduce", "value_reduce")},
    "aten.scatter_add.default": scatter,
    "aten.scatter_reduce.two": scatter,
    "aten.index_add.default": index_add,
    "aten.index_copy.default": index_add,
    "aten.index_reduce.default": index_add,
    "aten.select_scatter.default": select_scatter,
    "aten.slice_scatter.default": slice_scatter,
    "aten.embedding_bag.padding_idx": embedding_bag,
    "aten.one_hot.default": one_hot,
    "aten.unfold.default": unfold,
}
