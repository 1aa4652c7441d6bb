"""How stored tensors are declared: parameters, buffers, and constants short enough to be written out."""

from __future__ import annotations

import torch

from archir.emit.code import literal, quoted, size
from archir.ir.node import Node

SHORT = 16
"""A constant of at most this many elements is written out."""

_WRITTEN = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64}
)
"""Element types whose numbers are written out: comparing and making tensors of others is not always possible."""


def declaration(node: Node, tensor: torch.Tensor, field: str, named: bool) -> str:
    """Return the statement that declares a tensor of a module.

    Args:
        node: its parameter node.
        tensor: its value.
        field: its name in the module.
        named: whether that name is a Python name.
    """
    assert node.parameter is not None
    persistent = node.parameter.persistent
    source = None if persistent else constant(tensor)
    made = source or blank(tensor)
    if node.parameter.kind == "parameter":
        frozen = "" if node.parameter.trainable else ", requires_grad=False"
        if named:
            return f"self.{field} = nn.Parameter({made}{frozen})"
        return f"self.register_parameter({quoted(field)}, nn.Parameter({made}{frozen}))"
    return f"self.register_buffer({quoted(field)}, {made}{'' if persistent else ', persistent=False'})"


def blank(tensor: torch.Tensor) -> str:
    """Return the source of zeros of the shape of a tensor."""
    shape = ", ".join(size("size", s) if s > 1 else str(s) for s in tensor.shape)
    kind = "" if tensor.dtype == torch.float32 else f", dtype={literal(tensor.dtype)}"
    return f"torch.zeros({shape or '()'}{kind})"


def constant(tensor: torch.Tensor) -> str | None:
    """Return the source of a tensor that follows a simple rule or is short, None for others."""
    if tensor.dtype not in _WRITTEN or not tensor.numel():
        return None
    kind = literal(tensor.dtype)
    shape = f"({', '.join(map(str, tensor.shape))}{',' if tensor.dim() == 1 else ''})"
    first = tensor.flatten()[0].item()
    if tensor.numel() > 1 and bool((tensor == first).all()):
        return f"torch.full({shape}, {literal(first)}, dtype={kind})"
    if tensor.dim() == 1 and tensor.numel() > 2 and torch.equal(tensor, torch.arange(tensor.numel()).to(tensor.dtype)):
        return f"torch.arange({tensor.numel()}, dtype={kind})"
    if tensor.dim() >= 2 and tensor.shape[-1] > 1:
        ones = torch.ones(tensor.shape, dtype=tensor.dtype)
        for name in ("tril", "triu"):
            if torch.equal(tensor, getattr(torch, name)(ones)):
                return f"torch.ones({shape}, dtype={kind}).{name}()"
    if tensor.numel() <= SHORT:
        return f"torch.tensor({_nested(tensor.tolist())}, dtype={kind})"
    return None


def _nested(values: object) -> str:
    return f"[{', '.join(map(_nested, values))}]" if isinstance(values, list) else literal(values)
