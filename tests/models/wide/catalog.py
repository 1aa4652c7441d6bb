"""The wide zoo: models of other packages, each small, captured without their packages' help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tests.models.example import Example
from tests.models.wide.audio import AUDIO, UNCAPTURABLE
from tests.models.wide.language import LANGUAGE
from tests.models.wide.other import GRAPHS, MONAI, TABLES, TOKENS
from tests.models.wide.vision import VISION

__all__ = ["FAMILIES", "UNCAPTURABLE", "WIDE_ZOO"]


def _static(models: Mapping[str, Example], *names: str) -> Mapping[str, Example]:
    """Return the models, some of which are captured for the batch size of their example only."""
    return {**models, **{name: replace(models[name], static_batch=True) for name in names}}


FAMILIES: Mapping[str, tuple[str, Mapping[str, Example]]] = {
    "language": ("transformers", _static(LANGUAGE, "bart", "t5")),
    "vision": ("transformers", _static(VISION, "clip", "siglip")),
    "audio": ("transformers", _static(AUDIO, "whisper")),
    "medical": ("monai", MONAI),
    "graphs": ("torch_geometric", GRAPHS),
    "tables": ("rtdl_revisiting_models", _static(TABLES, "ft_transformer")),
    "tokens": ("x_transformers", TOKENS),
}
"""What each family of models needs to be installed, and its models."""

WIDE_ZOO: dict[str, Example] = {
    f"{family}/{name}": example for family, (_, models) in FAMILIES.items() for name, example in models.items()
}
"""All models, by family and name."""
