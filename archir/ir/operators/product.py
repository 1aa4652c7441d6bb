"""Products of matrices and vectors, and distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from archir.ir.operators.operator import FACTORS, SUMMANDS, TENSORS, Kind, Layer, Operator, Sizes, alike


def _contract(left: str) -> Callable[[Sizes], int]:
    """Return the rule of a product whose operand `left` is contracted along its last axis."""
    return lambda call: math.prod(call.result) * call.shape(left)[-1]


def _bilinear(call: Sizes) -> int:
    left, right = call.shape("input1")[-1], call.shape("input2")[-1]
    return math.prod(call.result) * left * right + math.prod(call.result) * right


def _add_batches(call: Sizes) -> int:
    return math.prod(call.result) * math.prod(call.shape("batch1")[::2])


def _einsum(call: Sizes) -> int:
    """Count a contraction from left to right; a letter nobody needs any more is summed over at once."""
    equation = str(call.argument("equation")).replace(" ", "")
    shapes = call.shapes("tensors")
    left, arrow, result = equation.partition("->")
    terms = [_letters(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    size = {letter: 1 for term in terms for letter in term}
    for term, shape in zip(terms, shapes, strict=True):
        size.update((letter, n) for letter, n in zip(term, shape, strict=True) if n != 1)
    every = [letter for term in terms for letter in term]
    kept = set(_letters(result, len(call.result))) if arrow else {x for x in every if every.count(x) == 1 or x < "A"}
    total, done = 0, set(terms[0])
    for i, term in enumerate(terms[1:], start=1):
        later = kept.union(*terms[i + 1 :])
        shared = (done & set(term)) | (done & later) | (set(term) & later)
        total += math.prod(size[letter] for letter in shared)
        done = shared & later
    return total


def _letters(term: str, rank: int) -> tuple[str, ...]:
    """Return the letters of a term, with the axes of an ellipsis as `0`, `1`, ... counted from the right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return (*before, *(str(i) for i in reversed(range(hidden))), *after)


def _of_two(second: str, left: str = "self") -> Operator:
    return Operator(multilinear=frozenset({left, second}), multiply_adds=_contract(left))


OPERATORS: Mapping[str, Operator] = {
    "linear": Operator(
        multilinear=FACTORS,
        layer=Layer(Kind.LINEAR, "Linear", ("weight", "bias")),
        features=-1,
        multiply_adds=_contract("input"),
    ),
    "bilinear": Operator(
        multilinear=frozenset({"input1", "input2", "weight"}),
        multiply_adds=_bilinear,
    ),
    **alike("matmul inner", _of_two("other")),
    **alike("mm bmm", _of_two("mat2")),
    "mv": _of_two("vec"),
    "dot": _of_two("tensor"),
    "addmm": Operator(features=-1, multiply_adds=_contract("mat1")),
    "baddbmm": Operator(multiply_adds=_contract("batch1")),
    "addbmm": Operator(multiply_adds=_add_batches),
    "addmv": Operator(multiply_adds=_contract("mat")),
    "einsum": Operator(multilinear=TENSORS, multiply_adds=_einsum),
    **alike("kron linalg_matmul", Operator(multilinear=SUMMANDS)),
    **alike("outer ger", Operator(multilinear=frozenset({"self", "vec2"}))),
    **alike(
        """
        addr chain_matmul linalg_multi_dot linalg_vecdot tensordot vdot _trilinear cdist _cdist_forward
        _euclidean_dist cosine_similarity pairwise_distance pdist cross linalg_cross _int_mm
        """
    ),
}
