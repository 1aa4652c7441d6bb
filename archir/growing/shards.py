"""Tensors of which each process of a group holds a shard, and whole ones.

`torch.distributed.checkpoint.state_dict` gathers the states of a module and of its optimiser at once. Here one tensor
is gathered after another, and what is restored is held to what an optimiser keeps (`archir.growing.optimisers`).
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from archir.scoring.processes import exchanging


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a whole, of whose shards each process holds one; any other as it is.

    All processes ask for the same tensors in the same order.

    Raises:
        ProcessError: another process has ended.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    with exchanging():
        return tensor.full_tensor()


def shared_out_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the shard that this process holds of a tensor, which all have whole, as it holds one of another tensor.

    Args:
        tensor: the tensor; on the device of the other one.
        like: the other one, of the same shape; where it is whole, so is what is returned.
    """
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
