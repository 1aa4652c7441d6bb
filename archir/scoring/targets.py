"""What the outputs of a batch are compared with: one tensor, or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Targets = torch.Tensor | Sequence["Targets"] | Mapping[str, "Targets"]
"""One tensor, or a tuple, list or mapping of them; the first axis of each runs over the examples."""


def tensors_of(targets: Any, name: str = "targets") -> Iterator[tuple[str, Any]]:
    """Yield the parts of targets that hold no others, in order, each with a name for errors."""
    if isinstance(targets, Mapping):
        for key, part in targets.items():
            yield from tensors_of(part, f"{name}[{key!r}]")
    elif isinstance(targets, tuple | list):
        for i, part in enumerate(targets):
            yield from tensors_of(part, f"{name}[{i}]")
    else:
        yield name, targets


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], nested: Any) -> Any:
    """Return nested tuples, lists and mappings with every tensor in them mapped; all else as it is."""
    if isinstance(nested, torch.Tensor):
        return function(nested)
    if isinstance(nested, Mapping):
        return {key: map_tensors(function, part) for key, part in nested.items()}
    if isinstance(nested, tuple | list):
        parts = [map_tensors(function, part) for part in nested]
        return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
    return nested
