"""Says whether graphs and tensors are equal down to the bits."""

from __future__ import annotations

import torch
from torch import Tensor

from archir.ir.graph import Graph


def same(a: Graph, b: Graph) -> bool:
    """Say whether two graphs are equal down to the bits of their tensors, ids included."""
    return (
        (a.name, a.nodes, a.signature, a.history) == (b.name, b.nodes, b.signature, b.history)
        and a.tensors.keys() == b.tensors.keys()
        and all(bits_equal(a.tensors[i], b.tensors[i]) for i in a.tensors)
    )


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal bit by bit, not-a-numbers included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)
