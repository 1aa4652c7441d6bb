"""The stored tensors of a model as nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from archir.ir.node import PARAMETER, Node, Parameter
from archir.ir.types import TensorType


def stored(model: nn.Module, first: int) -> Iterator[tuple[Node, torch.Tensor]]:
    """Yield a parameter node and a copy of the tensor for every stored tensor, tied ones once."""
    names: dict[tuple[object, ...], list[str]] = {}
    tensors: dict[tuple[object, ...], torch.Tensor] = {}
    persistent: dict[tuple[object, ...], bool] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for field, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                key = _storage(tensor)
                names.setdefault(key, []).append(f"{prefix}.{field}" if prefix else field)
                tensors[key] = tensor
                persistent[key] = field not in module._non_persistent_buffers_set
    for number, (key, tensor) in enumerate(tensors.items()):
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        parameter = Parameter(tuple(names[key]), kind, tensor.requires_grad, persistent[key])
        type_ = TensorType(tensor.dtype, tuple(tensor.shape))
        yield Node(first + number, PARAMETER, {}, (type_,), parameter=parameter), tensor.detach().clone()


def _storage(tensor: torch.Tensor) -> tuple[object, ...]:
    if tensor.is_meta or tensor.numel() == 0:
        return (id(tensor),)
    layout = (tensor.shape, tensor.stride(), tensor.dtype, isinstance(tensor, nn.Parameter))
    return (tensor.data_ptr(), *layout)
