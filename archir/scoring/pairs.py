"""What a batch is made of: inputs and targets, as a pair or as a mapping in which the targets are called that."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from archir.errors import ScoreError
from archir.ir.graph import Graph

LABELS = ("labels", "label", "targets", "target")
"""What targets are called in a batch that is a mapping."""


def pair_of(batch: Any, where: str = "", names: Collection[str] = ()) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch or of an example.

    A pair is that. Of a mapping the entry called `labels`, `label`, `targets` or `target` is the targets; if one other
    is left it is the first argument, whatever its name, and if there are more they are inputs by argument name.

    Args:
        batch: a pair, or a mapping.
        where: what it is, for errors.
        names: of arguments other than the first, by which also one alone is given.

    Raises:
        ScoreError: it is neither, or does not have one entry of targets and one of inputs at least.
    """
    if isinstance(batch, Mapping):
        found = [name for name in batch if name in LABELS]
        rest = {str(name): value for name, value in batch.items() if name not in LABELS}
        if len(found) == 1 and rest:
            alone = len(rest) == 1 and not rest.keys() & set(names)
            return next(iter(rest.values())) if alone else rest, batch[found[0]]
        held = ", ".join(map(str, batch)) or "nothing"
        if not found:
            what = "a batch that is a mapping has no targets"
        else:
            what = f"a batch that is a mapping has {'several targets' if len(found) > 1 else 'no inputs'}"
        hint = f"name one entry of {', '.join(LABELS)}; the others are inputs by argument name"
        raise ScoreError(what, where=where, why=f"it holds {held}", hint=hint)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ScoreError(
            f"a batch is a pair (inputs, targets) or a mapping, not a {kind}",
            where=where,
            hint=f"give such pairs, or mappings with an entry called {' or '.join(LABELS)}",
        )
    return batch[0], batch[1]


def tensor_pair(batch: Any, weights: Iterable[torch.Tensor], names: Collection[str] = ()) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch, see `pair_of`, with the arrays of NumPy in them as tensors.

    Fractions in arrays become those of the weights, for NumPy makes float64 unless it is told otherwise; tensors stay
    as they are.

    Args:
        batch: a pair, or a mapping.
        weights: those of the model.
        names: of arguments other than the first, by which also one alone is given.

    Raises:
        ScoreError: it is neither, or does not have one entry of targets and one of inputs at least; or an array holds
            no numbers.
    """
    floats = next((t.dtype for t in weights if t.is_floating_point()), torch.get_default_dtype())
    inputs, targets = pair_of(batch, names=names)
    return _tensors(inputs, floats, "inputs"), _tensors(targets, floats, "targets")


def _tensors(nested: Any, floats: torch.dtype, name: str) -> Any:
    if isinstance(nested, np.ndarray):
        shares = nested.flags.writeable and min(nested.strides, default=0) >= 0
        try:
            found = torch.from_numpy(nested if shares else nested.copy())
        except (TypeError, ValueError) as error:
            raise ScoreError(f"the {name} of a batch are no numbers", why=f"{error}") from error
        return found.to(floats) if found.is_floating_point() else found
    if isinstance(nested, Mapping):
        return {key: _tensors(part, floats, name) for key, part in nested.items()}
    if isinstance(nested, tuple | list):
        parts = [_tensors(part, floats, name) for part in nested]
        return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
    return nested


def argument_names(graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the arguments of a graph: those that are positional, and those that are not."""
    args, kwargs = graph.signature.args.children, graph.signature.kwargs.keys
    positional = (graph.inputs[leaf].name if isinstance(leaf, int) else f"arg{i}" for i, leaf in enumerate(args))
    return tuple(positional), tuple(map(str, kwargs))


def keywords(graph: Graph) -> tuple[str, ...]:
    """Return the names of the arguments of a graph other than one that is given alone and without its name."""
    positional, named = argument_names(graph)
    return (*positional[1:], *named)
