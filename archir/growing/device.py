"""The device a run computes on: found by its name before anything is written, with networks and batches moved there.

Where a run computes is no part of what decides it: it may go on on another device. What is kept of it, in files and in
memory, is on the CPU; what it ends with is where the network was that it was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import nn

from archir.errors import GrowError
from archir.ir.device_memory import is_out_of_memory
from archir.ir.graph import Graph
from archir.scoring.ranges import Text, problem, shown

AUTO = "auto"
"""An accelerator if there is one, else the CPU."""

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of accelerators that archir cannot compute on: some sums are made in float64."""

CPU = torch.device("cpu")


def _known(name: str) -> str:
    if name != AUTO:
        try:
            torch.device(name)
        except (RuntimeError, ValueError):  # a number that no device can have
            raise problem(f"there is no device {shown(name)}: write auto, cpu, cuda, cuda:1, ...") from None
    return name


DeviceName = Annotated[Text, AfterValidator(_known)]
"""`auto`, or a device as PyTorch names it; whether it is there is asked when a run begins."""


def find_device(name: str) -> torch.device:
    """Return the device of a name, with its number.

    Args:
        name: `auto`; `cpu`; or an accelerator, such as `cuda:1`. Without a number it is the current one of the process.

    Raises:
        GrowError: there is no such device, here or at all, or it has no float64.
    """
    there = torch.accelerator.current_accelerator(check_available=True)
    if name == AUTO:
        name = "cpu" if there is None or there.type in WITHOUT_FLOAT64 else there.type
    try:
        asked = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise GrowError(f"there is no device {shown(name)}", hint="write auto, cpu, cuda, cuda:1, ...") from error
    if asked.type == "cpu":
        return CPU
    if there is None or asked.type != there.type:
        known = "cpu" if there is None else f"cpu and {there.type}"
        raise GrowError(f"there is no device {name} here", why=f"PyTorch finds {known}", hint="write auto, or cpu")
    if asked.type in WITHOUT_FLOAT64:
        raise GrowError(f"nothing can be computed on {name}", why="it has no float64", hint="write auto, or cpu")
    count = torch.accelerator.device_count()
    number = torch.accelerator.current_device_index() if asked.index is None else asked.index
    if number >= count:
        last = f"{there.type}:0" + (f" to {there.type}:{count - 1}" if count > 1 else "")
        raise GrowError(f"there is no device {name} here", why=f"PyTorch finds {last}", hint="write auto, or cpu")
    return torch.device(asked.type, number)


def moved(graph: Graph, device: torch.device) -> Graph:
    """Return a graph with its stored tensors on a device; the same graph if they are.

    Raises:
        GrowError: there is too little memory for them.
    """
    with within_memory(f"move the network to {device}"):
        away = {i: t.to(device) for i, t in graph.tensors.items() if t.device != device}
    return graph.with_stored(away) if away else graph


def device_of(module: nn.Module) -> torch.device:
    """Return where the tensors of a module are; the CPU if it has none."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), CPU)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; what goes to a GPU goes by memory that is pinned, while the program runs on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def too_little_memory(what: str, where: str, error: BaseException) -> GrowError:
    """Return the error for a step of training that takes more memory than there is.

    Args:
        what: what could not be done.
        where: on what.
        error: what PyTorch said.
    """
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return GrowError(
        f"there is too little memory to {what}",
        where=where,
        why=said,
        hint="train on smaller batches (batch_size), in half precision (precision), or on another device",
    )


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Do something within the block that may take more memory than there is.

    Raises:
        GrowError: it does.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_little_memory(what, "", error) from error


def wait_for(device: torch.device) -> None:
    """Return when all that a device was told to do is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
