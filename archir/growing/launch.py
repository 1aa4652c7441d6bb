"""The process group of a program that was started by `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from archir.scoring.processes import ALONE, Processes, lost


@contextmanager
def launched() -> Iterator[Processes]:
    """Make the process group that `torchrun` has left the environment for, and end it after the block.

    There is one process alone where `WORLD_SIZE` is not given or 1. Tensors on the CPU are exchanged by gloo, those on
    GPUs by NCCL, where each process takes the GPU of its `LOCAL_RANK`.

    Raises:
        ProcessError: the processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE") or "1") == 1 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield ALONE
        return
    gpus = torch.cuda.device_count() if dist.is_nccl_available() else 0
    local = int(os.environ.get("LOCAL_RANK") or os.environ["RANK"])
    if local < gpus:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if local < gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise lost(error) from error
    try:
        yield Processes(dist.group.WORLD, parts=True)
    finally:
        dist.destroy_process_group()
