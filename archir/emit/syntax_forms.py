"""Forms that pieces of a syntax tree have."""

from __future__ import annotations

import ast


def dotted(node: ast.expr) -> str | None:
    """Return `torch.ops.aten.add.Tensor` for a chain of attributes of a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def is_range(node: ast.expr) -> bool:
    """Say whether an expression is `range` of a number."""
    match node:
        case ast.Call(func=ast.Name(id="range"), args=[ast.Constant(value=int())], keywords=[]):
            return True
    return False


def is_text(node: ast.stmt) -> bool:
    """Say whether a statement is a text, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def has_type_parameters(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Say whether a definition is generic."""
    return bool(getattr(node, "type_params", ()))
