"""The wide zoo: models of other packages, each small, captured without their packages' help."""

from __future__ import annotations

from collections.abc import Mapping

from tests.models import Example
from tests.zoo.audio_models import AUDIO, UNCAPTURABLE
from tests.zoo.language_models import LANGUAGE
from tests.zoo.other_models import GRAPHS, MONAI, TABLES, TOKENS
from tests.zoo.vision_models import VISION

__all__ = ["FAMILIES", "ONE_BATCH_SIZE", "UNCAPTURABLE", "WIDE_ZOO"]

FAMILIES: Mapping[str, tuple[str, Mapping[str, Example]]] = {
    "language": ("transformers", LANGUAGE),
    "vision": ("transformers", VISION),
    "audio": ("transformers", AUDIO),
    "medical": ("monai", MONAI),
    "graphs": ("torch_geometric", GRAPHS),
    "tables": ("rtdl_revisiting_models", TABLES),
    "tokens": ("x_transformers", TOKENS),
}
"""What each family of models needs to be installed, and its models."""

WIDE_ZOO: dict[str, Example] = {
    f"{family}/{name}": example for family, (_, models) in FAMILIES.items() for name, example in models.items()
}
"""All models, by family and name."""

ONE_BATCH_SIZE = frozenset({"language/bart", "language/t5", "vision/clip", "vision/siglip", "audio/whisper"})
"""Models that are captured for the batch size of their example, since `torch.export` cannot keep it open."""
