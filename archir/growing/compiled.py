"""Training steps of a module that is compiled: a second face of the same module, with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from archir.errors import GrowError, suggest
from archir.growing.examples import Inputs
from archir.scoring.processes import ALONE, Processes

OFF = "off"
"""Nothing is compiled."""


def check_backend(name: str, processes: Processes = ALONE) -> None:
    """Check that PyTorch has a backend that compiles, and that one process trains alone if there is one.

    Raises:
        GrowError: it has none of that name, or several processes train together: they normalise by whole batches, of
            which what is compiled knows nothing.
    """
    if name == OFF:
        return
    if processes.size > 1:
        raise GrowError(f"{processes.size} processes cannot train what is compiled", hint=f'compile = "{OFF}"')
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise GrowError(f"PyTorch has no backend {name!r:.60} to compile with", hint=suggest(name, [OFF, *known]))


def compiled(module: nn.Module, backend: str) -> Callable[..., Any]:
    """Return what is called in training steps in place of a module: the same, compiled when it is first called.

    Batches differ by an example, so that the number of examples is left open where the module allows it.

    Args:
        module: the module; its parameters stay those that are trained.
        backend: that of `torch.compile`.
    """
    made = torch.compile(module, backend=backend)

    def call(inputs: Inputs | None = None, **named: torch.Tensor) -> Any:
        given = named if inputs is None else {"": inputs}
        for tensor in given.values():
            assert isinstance(tensor, torch.Tensor)
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return made(**named) if inputs is None else made(inputs)

    return call
