"""What a repeated unit needs to keep the function: exponents.

Let unit `j` of a width be repeated `m[j]` times. In every value that carries the width, each copy holds the old unit
times `m[j] ** -e`, where the exponent `e` belongs to the place where the width stands in that value. Every operator
says how exponents are related: a sum keeps them equal, a product adds them, a contraction over the width needs them to
add up to one, a non-linear operator needs zero. Stored tensors are free to take any; solving the equations says
which stored tensors are divided. A tied embedding, for example, cannot be divided, so the division moves into the
affine parameters of the last normalisation.

A fresh unit is nought where a repeated one would be divided; elsewhere it may be anything.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archir.axes.positions import occurrences
from archir.axes.rules.linear import split_equation
from archir.axes.terms import Atom, Sum, Term
from archir.axes.widths import Width, Widths
from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Miss, Variable, solve


@dataclass(frozen=True)
class Exponents:
    """How repeated and fresh units of one width are to be stored.

    Attributes:
        stored: the exponent of every occurrence in stored tensors.
        uniform: a node that keeps the function only if all units repeat equally, and why; None if there is none.
    """

    stored: Mapping[Variable, int]
    uniform: Miss | None

    def of(self, value: Value, axis: int) -> list[int]:
        """Return the exponents of the occurrences along one axis of a stored tensor, in order."""
        found = sorted((occurrence, e) for (v, a, occurrence), e in self.stored.items() if (v, a) == (value, axis))
        return [e for _, e in found]


HOMOGENEOUS = frozenset({"relu", "leaky_relu", "neg", "abs", "prelu"})
"""Pointwise operators with `f(c*x) = c*f(x)` for positive `c`."""

LINEAR_MOVES = frozenset(
    {
        "_unsafe_view",
        "alias",
        "cat",
        "chunk",
        "clone",
        "concat",
        "constant_pad_nd",
        "contiguous",
        "cumsum",
        "detach",
        "dropout",
        "expand",
        "feature_dropout",
        "flatten",
        "flip",
        "index_select",
        "mT",
        "movedim",
        "narrow",
        "numpy_T",
        "pad",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat_interleave",
        "reshape",
        "roll",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "swapaxes",
        "t",
        "to",
        "transpose",
        "type_as",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
    }
)
"""Operators that treat every unit alike and positively linearly; pools and resampling are such too."""

REDUCTIONS = frozenset({"mean", "sum", "amax", "amin"})


def relate(widths: Widths, width: Width) -> Equations:
    """Return the equations between the exponents of a width, from every call it touches."""
    graph = widths.graph
    equations = Equations(widths, width)
    carrying = widths.values(width)
    touched = {v.node for v in carrying} | {u.node for v in carrying for u in graph.uses(v)}
    for id_ in sorted(touched):
        node = graph.node(id_)
        if node.is_call:
            _relate(equations, node)
    return equations


def solve_exponents(widths: Widths, width: Width) -> Exponents | Miss:
    """Find out how units of a width can be repeated with the function kept.

    Args:
        widths: the widths of the graph.
        width: one of its free widths.

    Returns:
        The exponents of all stored tensors, or the reason why there are none.
    """
    equations = relate(widths, width)
    if equations.miss:
        return equations.miss
    carrying = widths.values(width)
    stored = {v for v in carrying if widths.graph.node(v.node).parameter}
    solution = solve(equations, stored)
    if isinstance(solution, Miss):
        return solution
    every = [v for value in carrying if value in stored for v in equations.variables(value)]
    return Exponents({v: solution.get(v, 0) for v in every}, equations.uniform)


def _relate(q: Equations, node: Node) -> None:
    """Add the equations of one call."""
    name = node.op.split(".")[1] if node.op.startswith("aten.") else ""
    out = [Value(node.id, i) for i in range(len(node.results))]
    result = [v for o in out for v in q.variables(o)]
    values = [v for _, v in node.operands()]
    carried = [v for value in values for v in q.variables(value)]
    if not result and not carried:
        return
    if name in ("linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "einsum", "bilinear"):
        _product(q, node, name)
    elif name.startswith("conv"):
        _convolution(q, node, transposed=name.startswith("conv_transpose"))
    elif name in ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"):
        _normalisation(q, node, name)
    elif name == "scaled_dot_product_attention":
        _attention(q, node)
    elif name in ("softmax", "log_softmax"):
        x = _operand(node, "self")
        dim = node.argument("dim")
        if isinstance(dim, int) and q.variables(x, dim):
            q.forbid(node, "a softmax runs over it, and copies of a unit would share its weight")
        q.zero(node, [*carried, *result])
    elif name in REDUCTIONS:
        _reduction(q, node, name)
    elif name in ("add", "sub"):
        _sum(q, node)
    elif name in ("mul", "div"):
        _pointwise_product(q, node, name)
    elif name == "embedding":
        q.equal(node, q.variables(out[0], -1), q.variables(_operand(node, "weight"), 1))
    elif name in ("zeros", "zeros_like", "new_zeros"):
        pass
    elif name in LINEAR_MOVES or name in HOMOGENEOUS or "_pool" in name or name.startswith("upsample_"):
        _move(q, node, name)
    else:
        if "reduced" in q.width.roles and len(carried) > len(result):
            q.forbid(node, f"{name} runs over it")
        q.zero(node, [*carried, *result])


def _operand(node: Node, name: str) -> Value | None:
    found = node.argument(name)
    return found if isinstance(found, Value) else None


def _product(q: Equations, node: Node, name: str) -> None:
    """Matrix products, all seen as an einsum with an optional bias."""
    out = Value(node.id)
    operands, added = _einsum_form(q, node, name)
    letters: dict[str, list[list[Variable]]] = {}
    for value, names in operands:
        for axis, letter in enumerate(names):
            found = q.variables(value, axis)
            if found:
                letters.setdefault(letter, []).append(found)
    kept = _result_letters(q, node, name, operands)
    for letter, factors in letters.items():
        if letter in kept:
            q.total(node, q.variables(out, kept.index(letter)), *factors)
        else:
            q.contract(node, *factors)
    for axis, letter in enumerate(kept):
        if letter not in letters:
            q.zero(node, q.variables(out, axis))
    if added is not None:
        _aligned(q, node, out, [added])


def _einsum_form(q: Equations, node: Node, name: str) -> tuple[list[tuple[Value, list[str]]], Value | None]:
    def rank(value: Value) -> int:
        return len(q.widths.axes[value])

    if name == "einsum":
        equation, tensors = node.argument("equation"), node.argument("tensors")
        inputs, _ = split_equation(str(equation))
        parts = tensors if isinstance(tensors, tuple) else ()
        return [(v, list(x)) for v, x in zip(parts, inputs, strict=True) if isinstance(v, Value)], None
    if name == "bilinear":
        x1, x2, w = (_operand(node, n) for n in ("input1", "input2", "weight"))
        assert x1 is not None and x2 is not None and w is not None
        rows = [f"b{i}" for i in range(rank(x1) - 1)]
        return [(x1, [*rows, "i"]), (x2, [*rows, "j"]), (w, ["o", "i", "j"])], _operand(node, "bias")
    if name == "linear":
        x, w = _operand(node, "input"), _operand(node, "weight")
        assert x is not None and w is not None
        rows = [f"b{i}" for i in range(rank(x) - 1)]
        return [(x, [*rows, "k"]), (w, ["o", "k"] if rank(w) == 2 else ["k"])], _operand(node, "bias")
    values = [v for n, v in node.arguments.items() if isinstance(v, Value)]
    added = values.pop(0) if name in ("addmm", "baddbmm") else None
    left, right = values
    batch = max(rank(left), rank(right)) - 2
    names = [f"b{i}" for i in range(max(batch, 0))]

    def batched(value: Value) -> list[str]:
        return names[len(names) - (rank(value) - 2) :] if rank(value) > 2 else []

    row = [*batched(left), "i", "k"] if rank(left) > 1 else ["k"]
    column = [*batched(right), "k", "j"] if rank(right) > 1 else ["k"]
    return [(left, row), (right, column)], added


def _result_letters(q: Equations, node: Node, name: str, operands: list[tuple[Value, list[str]]]) -> list[str]:
    if name == "einsum":
        return list(split_equation(str(node.argument("equation")))[1])
    if name == "bilinear":
        return [*operands[0][1][:-1], "o"]
    seen = dict.fromkeys(letter for _, names in operands for letter in names)
    batch = sorted((x for x in seen if x.startswith("b")), key=lambda x: int(x[1:]))
    return batch + [x for x in ("i", "o", "j") if x in seen]


def _convolution(q: Equations, node: Node, *, transposed: bool) -> None:
    x, w, bias = (_operand(node, n) for n in ("input", "weight", "bias"))
    assert x is not None and w is not None
    out = Value(node.id)
    spatial = len(q.widths.axes[w]) - 2
    channel = -spatial - 1
    given, made = q.variables(x, channel), q.variables(out, channel)
    first, second = q.variables(w, 0), q.variables(w, 1)
    grouped = node.argument("groups") != 1
    if not grouped:
        inner, outer = (first, second) if transposed else (second, first)
        if inner or given:
            q.contract(node, given, inner)
        q.equal(node, made, outer)
    elif not transposed and second:
        if first:
            q.forbid(node, "it counts both inputs and outputs of a grouped convolution")
        q.contract(node, given, second)
    elif given and first and not (transposed and second):
        q.total(node, made, given, first)
    elif transposed and second and not first:
        q.equal(node, made, second)
    elif not given:
        q.equal(node, made, first)
    else:
        q.forbid(node, "its part in a grouped convolution has no correction")
    if bias is not None:
        q.equal(node, made, q.variables(bias, 0))
    for value in (x, out):
        for axis in range(len(q.widths.axes[value]) + channel):
            q.zero(node, q.variables(value, axis))


def _normalisation(q: Equations, node: Node, name: str) -> None:
    out, x = Value(node.id), _operand(node, "input")
    weight, bias = _operand(node, "weight"), _operand(node, "bias") if name != "rms_norm" else None
    inner = "norm" in q.width.roles and name not in ("batch_norm", "instance_norm")
    if inner and name in ("layer_norm", "rms_norm"):
        shape = node.argument("normalized_shape")
        inner = isinstance(shape, tuple) and any(q.variables(x, axis) for axis in range(-len(shape), 0))
    elif inner:
        inner = bool(q.variables(x, 1)) and not _counts_groups(q, node)
    if inner:
        kind = name.replace("_", " ")
        q.require_uniform(node, f"a {kind} runs over it, so all its units must repeat equally")
    q.zero(node, q.variables(x))
    for statistics in ("running_mean", "running_var"):
        if name in ("batch_norm", "instance_norm"):
            q.zero(node, q.variables(_operand(node, statistics)))
    affine = [v for v in (weight, bias) if v is not None]
    made = q.variables(out)
    if not affine:
        q.zero(node, made)
    for value in affine:
        q.equal(node, made, q.variables(value))


def _counts_groups(q: Equations, node: Node) -> bool:
    """Say whether the width counts whole groups of a group normalisation, which are independent of each other."""
    doubled = q.widths.spell(node.id, {q.width.atom: 2 * q.width.size})
    return doubled.arguments.get("num_groups") != node.argument("num_groups")


def _attention(q: Equations, node: Node) -> None:
    query, key, value, mask = (_operand(node, n) for n in ("query", "key", "value", "attn_mask"))
    out = Value(node.id)
    heads = q.variables(query, -1), q.variables(key, -1)
    if any(heads):
        q.contract(node, *heads)
    q.equal(node, q.variables(out, -1), q.variables(value, -1))
    for operand in (query, key, mask):
        if operand is not None:
            rank = len(q.widths.axes[operand])
            q.zero(node, [v for axis in range(rank - 1) for v in q.variables(operand, axis)])
    for axis in range(len(q.widths.axes[out]) - 1):
        assert value is not None
        back = axis - len(q.widths.axes[out])
        carried = q.variables(value, back) if -back <= len(q.widths.axes[value]) else []
        q.equal(node, q.variables(out, axis), carried)


def _reduction(q: Equations, node: Node, name: str) -> None:
    x, out = _operand(node, "self"), Value(node.id)
    assert x is not None
    rank = len(q.widths.axes[x])
    given = node.arguments.get("dim")
    parts = given if isinstance(given, tuple) else (given,)
    dims = {d % rank for d in parts if isinstance(d, int)} or set(range(rank))
    over = [v for d in dims for v in q.variables(x, d)]
    if over and name == "mean":
        q.require_uniform(node, "a mean runs over it, so all its units must repeat equally")
    if over and name == "sum":
        q.end(node, over)
        for v in over:
            q.add(node, 1, (v, 1))
    else:
        q.zero(node, over)
    kept = [v for d in range(rank) if d not in dims for v in q.variables(x, d)]
    q.equal(node, q.variables(out), kept)


def _aligned(q: Equations, node: Node, out: Value, operands: Sequence[Value]) -> None:
    """Equate the exponents of a result with those of every operand it is a broadcast sum of."""
    rank = len(q.widths.axes[out])
    for value in operands:
        own = len(q.widths.axes.get(value, ()))
        for back in range(1, rank + 1):
            made = q.variables(out, -back)
            q.equal(node, made, q.variables(value, -back) if back <= own else [])


def _sum(q: Equations, node: Node) -> None:
    out = Value(node.id)
    operands = [v for _, v in node.operands() if v in q.widths.axes]
    if any(not isinstance(node.argument(n), Value) for n in ("self", "other")):
        q.zero(node, q.variables(out))
    _aligned(q, node, out, operands)


def _pointwise_product(q: Equations, node: Node, name: str) -> None:
    out = Value(node.id)
    operands = [v for v in (_operand(node, "self"), _operand(node, "other")) if v in q.widths.axes]
    rank = len(q.widths.axes[out])
    for back in range(1, rank + 1):
        made = q.variables(out, -back)
        factors = [q.variables(v, -back) if back <= len(q.widths.axes[v]) else [] for v in operands if v is not None]
        if name == "div" and len(factors) > 1 and factors[1]:
            q.zero(node, [*made, *factors[0], *factors[1]])
        else:
            q.total(node, made, *factors)


def _move(q: Equations, node: Node, name: str) -> None:
    out = [Value(node.id, i) for i in range(len(node.results)) if Value(node.id, i) in q.widths.axes]
    values = [v for _, v in node.operands() if v in q.widths.axes]
    if name in ("cat", "concat", "split", "split_with_sizes", "chunk", "slice", "narrow"):
        _join(q, node, name, out, values)
        return
    made, given = q.variables(out[0]), q.variables(values[0])
    order = _permutation(node, name, len(q.widths.axes[values[0]])) if len(given) > 1 else None
    if order is not None:
        given = [v for axis in order for v in q.variables(values[0], axis)]
    for value in out[1:]:
        q.equal(node, q.variables(value), given)
    if name == "prelu":
        q.zero(node, [v for value in values[1:] for v in q.variables(value)])
    q.equal(node, made, given)


def _permutation(node: Node, name: str, rank: int) -> list[int] | None:
    """Return which axis of the operand each axis of the result is, for operators that only permute axes."""
    order = list(range(rank))
    if name == "permute":
        dims = node.argument("dims")
        return [d % rank for d in dims if isinstance(d, int)] if isinstance(dims, tuple) else None
    if name in ("transpose", "swapaxes", "t", "numpy_T", "mT"):
        a, b = (d for d in [*(d for d in node.arguments.values() if isinstance(d, int)), -2, -1][:2])
        order[a], order[b] = order[b], order[a]
        return order
    return None


def _join(q: Equations, node: Node, name: str, out: list[Value], values: list[Value]) -> None:
    """Concatenation and its inverses: the occurrences along the axis are those of the parts in turn."""
    whole, parts = (out[0], values) if name in ("cat", "concat") else (values[0], out)
    dim = node.argument("dim")
    assert isinstance(dim, int)
    rank = len(q.widths.axes[whole])
    parts = [p for p in parts if len(q.widths.axes[p]) == rank]
    for axis in range(rank):
        if axis != dim % rank:
            for part in parts:
                q.equal(node, q.variables(whole, axis), q.variables(part, axis))
    along, joined = q.variables(whole, dim), [v for p in parts for v in q.variables(p, dim)]
    if name in ("slice", "narrow") and len(along) != len(joined):
        start = node.argument("start")
        skipped = _occurrences_before(q.widths.axes[whole][dim], q.width.atom, start if isinstance(start, int) else 0)
        along = along[skipped : skipped + len(joined)]
        if not joined:
            return
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
