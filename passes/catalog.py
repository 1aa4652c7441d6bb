"""The passes that come with archir, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from archir.rewrite.morphism import Morphism, Pass
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen

PASSES: Mapping[str, type[Pass]] = MappingProxyType({p.name: p for p in (Prune, Split, Widen)})
"""Every pass by the name it has in specifications."""


def morphisms() -> tuple[Morphism, ...]:
    """Return the morphisms whose candidates are scored unless others are asked for."""
    return (Split(), Prune())
