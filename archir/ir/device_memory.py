"""The memory of the devices that tensors are on: how much is free, and what is tried again where it runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

from archir.errors import ArchirError
from archir.ir.room import free_memory

R = TypeVar("R")

_SAID = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What PyTorch says where the system, or a library of a GPU, gets no more memory: the error is like any other."""


def free_on(device: torch.device) -> int:
    """Return the bytes that are free on a device, what PyTorch holds there and does not use included.

    Of accelerators that do not tell, such as those that share the memory of the system, that of the system.
    """
    if device.type == "cpu":
        return free_memory()
    try:
        free, _ = torch.accelerator.get_memory_info(device)
        unused = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    except (RuntimeError, NotImplementedError, AttributeError):
        return free_memory()
    return int(free + max(unused, 0))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error is that memory has run out, or was raised because of one that is."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID):
            return True
        error = error.__cause__
    return False


def attempt(work: Callable[[], R]) -> tuple[R] | None:
    """Return what some work returns, alone in a tuple; None if memory runs out, of which nothing is held any more.

    Raises:
        Exception: whatever else the work raises.
    """
    try:
        return (work(),)
    except (RuntimeError, MemoryError, ArchirError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the block, since the error holds the frames of what was tried, and these hold its tensors.
    gc.collect()
    if torch.accelerator.is_available():
        with suppress(RuntimeError, NotImplementedError):  # of devices whose memory PyTorch does not keep
            torch.accelerator.empty_cache()
    return None
