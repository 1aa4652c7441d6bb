"""Models of both zoos by one name: `own/gpt`, `language/bert`."""

from __future__ import annotations

import warnings

import torch

from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models.example import Example
from tests.models.wide.catalog import WIDE_ZOO
from tests.models.zoo import ZOO


def captured(name: str) -> tuple[Graph, Example]:
    """Return the graph of a model, the same every time, and what it was made from; what it loses is not told.

    Args:
        name: of the model, by family and name.

    Raises:
        CaptureError: it cannot be captured.
    """
    family, _, short = name.partition("/")
    example = ZOO[short] if family == "own" else WIDE_ZOO[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(example.build(), example.inputs(), example.kwargs(), static_batch=example.static_batch), example
