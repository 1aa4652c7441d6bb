"""Properties of tensors, which are numbers."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import Operator, alike

OPERATORS: Mapping[str, Operator] = alike(
    """
    can_cast dim is_complex is_floating_point is_same_size is_signed numel size stride sym_numel sym_size sym_stride
    sym_storage_offset _shape_as_tensor
    """
)
