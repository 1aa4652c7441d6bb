"""Products of float32 numbers, computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_KINDS: tuple[Any, ...] = (torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, n) for n in ("conv", "rnn")))


@contextmanager
def in_float32() -> Iterator[None]:
    """Compute within the block in float32 what is float32, on GPUs too, which else round products to 10 bits."""
    before = [kind.fp32_precision for kind in _KINDS]
    try:
        for kind in _KINDS:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(_KINDS, before, strict=True):
            kind.fp32_precision = precision
