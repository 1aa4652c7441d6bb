"""What surrounds a call of the user's, gradients switched off or autocast for one, is kept from what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from archir.errors import ScoreError


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the element types that models have, also where `torch.autocast` surrounds the call."""
    there = torch.accelerator.current_accelerator()
    with ExitStack() as off:
        for kind in dict.fromkeys(("cpu", "cpu" if there is None else there.type)):
            off.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Record gradients and compute in the element types that models have, whatever surrounds the call.

    Raises:
        ScoreError: that is `torch.inference_mode`, the tensors of which have no gradients.
    """
    if torch.is_inference_mode_enabled():
        raise ScoreError(
            "nothing can be scored within torch.inference_mode()",
            why="rewrites are scored by gradients, and tensors that are made there have none",
            hint="call it outside, or within torch.no_grad(), which it can switch off for itself",
        )
    with torch.enable_grad(), without_autocast():
        yield
