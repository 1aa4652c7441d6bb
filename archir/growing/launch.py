"""The process group of a program that was started by `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from archir.errors import ProcessError
from archir.scoring.processes import ALONE, Processes


@contextmanager
def launched() -> Iterator[Processes]:
    """Make the process group that `torchrun` has left the environment for, and end it after the block.

    There is one process alone where `WORLD_SIZE` is not given or 1. Tensors on the CPU are exchanged by gloo, those on
    GPUs by NCCL where there is one for each process of a machine (`LOCAL_WORLD_SIZE`), which takes that of its
    `LOCAL_RANK`.

    Raises:
        ProcessError: the processes do not find each other, or the environment is none of `torchrun`.
    """
    size = _number("WORLD_SIZE")
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if not size or missing:
        raise ProcessError(
            f"WORLD_SIZE is {size}, and the environment has no {', '.join(missing)}" if size else "WORLD_SIZE is 0",
            hint="start the processes by torchrun, or unset WORLD_SIZE for one process alone",
        )
    gpus = torch.cuda.device_count() if dist.is_nccl_available() else 0
    on_gpus = _number("LOCAL_WORLD_SIZE", size) <= gpus
    if on_gpus:
        torch.cuda.set_device(_number("LOCAL_RANK", 0))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"the {size} processes do not find each other",
            where=f"process {os.environ['RANK']}, {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            why=f"{type(error).__name__}: {error}",
            hint="start them by torchrun, each with a rank of its own",
        ) from error
    try:
        yield Processes(dist.group.WORLD, parts=True)
    finally:
        dist.destroy_process_group()


def _number(name: str, otherwise: int = 1) -> int:
    """Return a number of the environment.

    Raises:
        ProcessError: it is none.
    """
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal():
        raise ProcessError(f"{name} is {text!r:.80}, not a whole number", hint="start the processes by torchrun")
    return int(text)
