"""Everything that decides a run, item by item, so that a run that goes on is the one that was started.

An item is a JSON value under a name such as `budget.parameters`. What is too large to be read stands as a checksum:
data, of which some examples stand for those that are not in memory, weights, and the code of the user's own losses and
passes. The number of threads, of processes that read examples, the device and the machine are no part of it, though
sums may be rounded otherwise there, and dropout draws other numbers on another kind of device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from archir.growing.code_checksum import checksum_of_code
from archir.growing.examples import Split, looked_at
from archir.growing.iterated import Iterated
from archir.growing.options import GrowOptions
from archir.growing.records import from_json, to_json
from archir.ir.graph import Graph
from archir.ir.notes import version_of
from archir.ir.text import print_function
from archir.rewrite.morphism import Morphism
from archir.rewrite.spec import format_spec
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES, Loss
from archir.scoring.targets import tensors_of

ELSEWHERE = ("options.device", "options.channels_last", "options.compile", "options.sharded")
"""Options that say where and by what a run is computed, and not what it is."""

SHOWN = 60
"""Characters of a value that are shown where it differs."""


def fingerprint(
    graph: Graph,
    *,
    train: Split,
    validation: Split,
    budget: Budget,
    options: GrowOptions,
    loss: Loss,
    morphisms: Sequence[Morphism],
) -> dict[str, Any]:
    """Return what decides a run: see `archir.growing.grow.grow_graph` for the arguments.

    Returns:
        JSON values by item.
    """
    own = LOSSES.get(loss.name) is not loss
    found: dict[str, Any] = {
        "version.archir": version_of("archir"),
        "version.torch": torch.__version__,
        "seed.parameters": graph.parameter_count,
        "seed.graph": print_function(graph),
        "seed.tensors": _checksum({n.names[0]: graph.tensors[n.id] for n in graph.parameters}),
        **_items(budget, "budget"),
        **{name: value for name, value in _items(options, "options").items() if name not in ELSEWHERE},
        "loss": loss.name,
        "loss.code": checksum_of_code(loss) if own else None,
        "morphisms": [format_spec(m) for m in morphisms],
        "morphisms.code": [None if _is_archirs(m) else checksum_of_code(type(m)) for m in morphisms],
        **_examples(train, "train"),
        **_examples(validation, "validation"),
    }
    # As it will be read back: tuples are lists.
    return dict(from_json(to_json(found)))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how two fingerprints differ, an item each: `budget.parameters was 60, is 50`."""
    found = [
        _difference(name, before.get(name), now.get(name))
        for name in dict.fromkeys((*now, *before))
        # As text: in Python, 1, 1.0 and True are the same.
        if _shown(before.get(name)) != _shown(now.get(name)) or before.get(name) != now.get(name)
    ]
    return [f"{name} was {was}, is {now}" for name, was, now in found]


def _difference(name: str, before: Any, now: Any) -> tuple[str, str, str]:
    """Return where two values differ, and what stands there: the first line of two texts, the values otherwise."""
    if isinstance(before, str) and isinstance(now, str) and "\n" in before + now:
        lines, others = before.splitlines(), now.splitlines()
        at = next((i for i, (a, b) in enumerate(zip(lines, others, strict=False)) if a != b), None)
        at = min(len(lines), len(others)) if at is None else at
        was, new = (_shown(text[at].strip()) if at < len(text) else "nothing" for text in (lines, others))
        return f"{name}, line {at + 1},", was, new
    return name, _shown(before), _shown(now)


def _shown(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _items(value: object, name: str) -> dict[str, Any]:
    """Return the fields of a dataclass by dotted name, and those of the dataclasses in it."""
    if not is_dataclass(value):
        return {name: value}
    return {k: v for f in fields(value) for k, v in _items(getattr(value, f.name), f"{name}.{f.name}").items()}


def _examples(split: Split, name: str) -> dict[str, Any]:
    inputs, targets = hashlib.sha256(), hashlib.sha256()
    for seen, _ in looked_at(split):
        _add(inputs, dict(tensors_of(seen.inputs, "inputs")))
        _add(targets, dict(tensors_of(seen.targets)))
    # A position in what can only be iterated counts the batches that it gives.
    sizes = {f"{name}.batches": list(split.source.first[1])} if isinstance(split, Iterated) else {}
    return {
        f"{name}.examples": split.count,
        **sizes,
        f"{name}.inputs": inputs.hexdigest(),
        f"{name}.targets": targets.hexdigest(),
    }


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a checksum of tensors with their names, element types and shapes."""
    digest = hashlib.sha256()
    _add(digest, tensors)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode(errors="surrogatepass"))
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _is_archirs(morphism: Morphism) -> bool:
    """Say whether a morphism comes with archir, whose version stands for its code."""
    return type(morphism).__module__.partition(".")[0] in ("archir", "passes")
