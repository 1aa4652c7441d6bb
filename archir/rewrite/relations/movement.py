"""Relations of operators that move data, or treat every unit alike and positively linearly: exponents pass through."""

from __future__ import annotations

from collections.abc import Mapping

from archir.axes.positions import occurrences
from archir.axes.rules.reshape import PERMUTATIONS, axis_order
from archir.axes.terms import Atom, Sum, Term
from archir.ir.node import Node, Value
from archir.ir.types import is_float
from archir.rewrite.equations import Equations, Relation


def move(q: Equations, node: Node) -> None:
    """Reshapes, selections, pools and so on: the order of occurrences stays.

    A conversion to integers is not linear; indices, such as those of a pool, do not depend on a factor.
    """
    given = q.variables(q.operands(node)[0])
    first, *others = q.results(node)
    if not is_float(q.widths.graph.type_of(first)):
        q.exact(node)
    q.equal(node, q.variables(first), given)
    for value in others:
        linear = is_float(q.widths.graph.type_of(value))
        q.equal(node, q.variables(value), given) if linear else q.zero(node, q.variables(value))


def permute(q: Equations, node: Node) -> None:
    """Operators that permute axes: the occurrences go with their axes."""
    x = q.operands(node)[0]
    order = axis_order(node, q.rank(x))
    q.equal(node, q.variables(Value(node.id)), [v for axis in order for v in q.variables(x, axis)])


def stack(q: Equations, node: Node) -> None:
    """`stack`: every operand is like the result."""
    for value in q.operands(node):
        q.equal(node, q.variables(Value(node.id)), q.variables(value))


def pad(q: Equations, node: Node) -> None:
    """`pad`: linear, unless it is with something else than zero."""
    if node.arguments.get("value") not in (None, 0, 0.0):
        q.exact(node)
    move(q, node)


def embedding(q: Equations, node: Node) -> None:
    """`embedding`: rows of the table."""
    out = Value(node.id)
    for axis in range(q.rank(out) - 1):
        q.zero(node, q.variables(out, axis))
    q.equal(node, q.variables(out, -1), q.variables(q.operand(node, "weight"), 1))


def cat(q: Equations, node: Node) -> None:
    """`cat`."""
    _join(q, node, Value(node.id), q.operands(node))


def cut(q: Equations, node: Node) -> None:
    """`split`, `chunk`, `slice`, `narrow`."""
    _join(q, node, q.operand(node, "self"), q.results(node))


def _join(q: Equations, node: Node, whole: Value, parts: list[Value]) -> None:
    """Concatenation and its inverses: the occurrences along the axis are those of the parts in turn."""
    dim = node.argument("dim")
    rank = q.rank(whole)
    axis = dim % rank if isinstance(dim, int) else 0
    parts = [p for p in parts if q.rank(p) == rank]
    for other in range(rank):
        if other != axis:
            for part in parts:
                q.equal(node, q.variables(whole, other), q.variables(part, other))
    along, joined = q.variables(whole, axis), [v for p in parts for v in q.variables(p, axis)]
    if node.op.startswith(("aten.slice.", "aten.narrow.")):
        # What is cut away does not come out anywhere, and is free.
        start = node.argument("start")
        skipped = _occurrences_before(q.widths.axes[whole][axis], q.width.atom, start if isinstance(start, int) else 0)
        along = along[skipped : skipped + len(joined)]
    q.equal(node, along, joined)


def _occurrences_before(term: Term, atom: Atom, start: int) -> int:
    """Return how often an atom occurs in the parts of a sum that end at or before a position."""
    if not isinstance(term, Sum):
        return 0
    start = start + term.size if start < 0 else start
    count = end = 0
    for part in term.parts:
        end += part.size
        if end <= start:
            count += occurrences(part, atom)
    return count


MOVES = (
    *("_to_copy", "_unsafe_view", "alias", "broadcast_to", "clone", "constant_pad_nd", "contiguous", "cumsum"),
    *("detach", "dropout", "expand", "feature_dropout", "flatten", "flip", "index_select", "lift_fresh"),
    *("lift_fresh_copy", "ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "roll"),
    *("select", "squeeze", "tile", "to", "tril", "triu", "type_as", "unbind", "unflatten", "unsqueeze", "view"),
    *("view_as", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "im2col", "col2im"),
    *(f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")),
    *("upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_adaptive_avg_pool2d"),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
)
RELATIONS: Mapping[str, Relation] = {
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys((op.split(".")[1] for op in PERMUTATIONS), permute),
    "stack": stack,
    "pad": pad,
    "constant_pad_nd": pad,
    "embedding": embedding,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "chunk", "unsafe_chunk", "tensor_split"), cut),
    **dict.fromkeys(("slice", "narrow"), cut),
}
