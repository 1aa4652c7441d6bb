"""Axis rules of matrix products: the letters of an einsum are axes."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from archir.axes.rules.context import Context, Rule
from archir.axes.terms import Term, add_role, unify


def linear(c: Context) -> Sequence[Sequence[Term]]:
    """`y[..., o] = x[..., i] w[o, i] + b[o]`."""
    x, weight, bias = c.operand("input"), c.operand("weight"), c.operand("bias")
    contract(c, x[-1], weight[-1], "input", "weight")
    if len(weight) == 1:
        return [x[:-1]]
    if bias:
        unify(bias[0], weight[0])
    add_role(weight[0], "produced")
    return [(*x[:-1], weight[0])]


def matmul(c: Context) -> Sequence[Sequence[Term]]:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: the last axis of one with the last but one of the other."""
    names = tuple(c.node.arguments)
    left, right = map(c.operand, names)
    contract(c, left[-1], right[-2] if len(right) > 1 else right[0], *names)
    batch = c.broadcast(left[:-2], right[:-2])
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return [[*batch, *rows, *columns]]


def addmm(c: Context) -> Sequence[Sequence[Term]]:
    """`addmm`, `baddbmm`: `self + a @ b`."""
    names = list(c.node.arguments)
    left, right = c.operand(names[1]), c.operand(names[2])
    contract(c, left[-1], right[-2], *names[1:3])
    batch = c.broadcast(left[:-2], right[:-2])
    return [c.broadcast(c.operand("self"), [*batch, left[-2], right[-1]])]


def einsum(c: Context) -> Sequence[Sequence[Term]]:
    """`einsum`: equal letters are equal axes; letters that vanish are contracted."""
    equation = c.node.argument("equation")
    operands = c.operands("tensors")
    inputs, result = split_equation(str(equation), list(map(len, operands)))
    axes: dict[str, Term] = {}
    of_weights: set[str] = set()
    for value, letters, operand in zip(c.node.values, inputs, operands, strict=True):
        of_weights.update(letters if c.is_stored(value) else ())
        for letter, axis in zip(letters, operand, strict=True):
            if axis.size != 1 or letter not in axes:
                known = axes.setdefault(letter, axis)
                if known.size == 1:
                    axes[letter] = axis
                else:
                    unify(known, axis)
    for letter, axis in axes.items():
        if letter not in result:
            c.role([axis], "contracted" if letter in of_weights else "matched")
    return [[axes[letter] for letter in result]]


def split_equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the operand letters and the result letters of an einsum equation.

    An ellipsis is replaced by letters the equation does not use, aligned at its end.

    Args:
        equation: the equation.
        ranks: number of axes of each operand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    free = [x for x in ascii_letters if x not in equation]
    longest = 0
    inputs: list[str] = []
    for letters, rank in zip(left.split(","), ranks, strict=True):
        hidden = rank - len(letters.replace("...", "")) if "..." in letters else 0
        longest = max(longest, hidden)
        inputs.append(letters.replace("...", "".join(reversed(free[:hidden]))))
    dots = "".join(reversed(free[:longest]))
    if not arrow:
        right = "..." + "".join(sorted(x for x in set(left) - {",", "."} if left.count(x) == 1))
    return inputs, right.replace("...", dots)


def bilinear(c: Context) -> Sequence[Sequence[Term]]:
    """`y[o] = x1[i] w[o, i, j] x2[j] + b[o]`."""
    x1, x2, weight, bias = (c.operand(n) for n in ("input1", "input2", "weight", "bias"))
    contract(c, x1[-1], weight[1], "input1", "weight")
    contract(c, x2[-1], weight[2], "input2", "weight")
    if bias:
        unify(bias[0], weight[0])
    c.role([weight[0]], "produced")
    return [[*c.broadcast(x1[:-1], x2[:-1]), weight[0]]]


def contract(c: Context, left: Term, right: Term, *operands: str) -> None:
    """Unify two axes that are summed over against each other; `operands` are the arguments they belong to."""
    unify(left, right)
    add_role(left, c.contraction(*operands))


RULES: dict[str, Rule] = {
    "aten.linear.default": linear,
    **{f"aten.{op}.default": matmul for op in ("matmul", "mm", "bmm", "mv", "dot")},
    "aten.addmm.default": addmm,
    "aten.baddbmm.default": addmm,
    "aten.einsum.default": einsum,
    "aten.bilinear.default": bilinear,
}
