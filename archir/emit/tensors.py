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
    persistent, trained = node.parameter.persistent, node.parameter.kind == "parameter"
    source = None if persistent and (trained or not _has_a_rule(tensor)) else constant(tensor)
    made = source or (initial(tensor) if trained else blank(tensor))
    if trained:
        frozen = "" if node.parameter.trainable else ", requires_grad=False"
        if named:
            return f"self.{field} = nn.Parameter({made}{frozen})"
        return f"self.register_parameter({quoted(field)}, nn.Parameter({made}{frozen}))"
    return f"self.register_buffer({quoted(field)}, {made}{'' if persistent else ', persistent=False'})"


def blank(tensor: torch.Tensor) -> str:
    """Return the source of a tensor of the same shape that stands for one until weights are loaded: zeros, or ones.

    Ones stand for real numbers that are nearer to one in the mean, as scales and variances are.
    """
    ones = tensor.is_floating_point() and tensor.numel() > 0 and float(tensor.double().mean()) > 0.5
    return _made("ones" if ones else "zeros", tensor)


def initial(tensor: torch.Tensor) -> str:
    """Return the source of what a parameter begins training with, where it is not loaded.

    A vector is one of ones or of zeros, whichever it is nearer to. A tensor of more dimensions is normal, with the
    variance of one over the number of its elements for each place of its first axis, unless it is zero itself.

    Source: LeCun et al. (1998), Efficient BackProp, section 4.6, for the variance.
    """
    known = tensor.is_floating_point() or tensor.is_complex()
    if not known or tensor.dim() < 2 or not tensor.numel() or not bool(tensor.any()):
        return blank(tensor)
    inputs = " * ".join(size("size", s) for s in tensor.shape[1:] if s > 1)
    scale = f" / ({inputs}) ** 0.5" if " " in inputs else f" / {inputs}**0.5" if inputs else ""
    return f"{_made('randn', tensor)}{scale}"


def _made(function: str, tensor: torch.Tensor) -> str:
    shape = ", ".join(size("size", s) if s > 1 else str(s) for s in tensor.shape)
    kind = "" if tensor.dtype == torch.float32 else f", dtype={literal(tensor.dtype)}"
    return f"torch.{function}({shape or '()'}{kind})"


def _has_a_rule(tensor: torch.Tensor) -> bool:
    """Say whether what a buffer holds is no count, and is no matter of training: whole numbers and truth values."""
    return tensor.numel() > 1 and not (tensor.is_floating_point() or tensor.is_complex())


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
