"""Operators that look up, pick and write elements by index."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import SELF, Kind, Layer, Movement, Operator, alike

_WRITES = frozenset({"self", "src"})

OPERATORS: Mapping[str, Operator] = {
    "embedding": Operator(
        multilinear=frozenset({"weight"}),
        moves=Movement.PICK,
        layer=Layer(Kind.EMBEDDING, "Embedding", ("weight",)),
        features=-1,
    ),
    **alike(
        "gather index index_select masked_select take take_along_dim _unsafe_index",
        Operator(linear=SELF, moves=Movement.PICK),
    ),
    "scatter": Operator(moves=Movement.WRITE),
    "scatter.src": Operator(linear=_WRITES, moves=Movement.WRITE),
    **alike("index_put _unsafe_index_put", Operator(linear=frozenset({"self", "values"}), moves=Movement.WRITE)),
    **alike("index_copy masked_scatter put", Operator(linear=frozenset({"self", "source"}), moves=Movement.WRITE)),
    "index_fill": Operator(moves=Movement.WRITE),
    "scatter_add": Operator(linear=_WRITES),
    "index_add": Operator(linear=frozenset({"self", "source"})),
    "fill": Operator(pointwise=True, moves=Movement.FILL),
    "one_hot": Operator(moves=Movement.WRITE),
    **alike(
        """
        argwhere bucketize embedding_bag _embedding_bag _embedding_bag_forward_only index_reduce isin nonzero
        nonzero_numpy nonzero_static scatter.reduce scatter.value_reduce scatter_reduce searchsorted unique_consecutive
        unique_dim unique_dim_consecutive _unique _unique2 _unsafe_masked_index
        """
    ),
}
