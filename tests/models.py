"""The zoo: small models that tests run on, each chosen for one hard structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.layer_models import (
    MLP,
    DataBranch,
    DataLoop,
    FlipCumsum,
    LowRank,
    MisalignedSums,
    Nested,
    OuterProduct,
    Permutation,
    RawParameters,
    ShapeBranch,
    SharedModule,
    SortedUnits,
    TwoHeads,
)
from tests.token_models import GPT, GRU, LSTM, Encoder, GroupedQueryAttention, RotaryEmbedding
from tests.vision_models import (
    VGG,
    BroadcastMask,
    Decoder,
    DenseNet,
    DilatedPyramid,
    MobileNet,
    ResNet,
    ShuffleNet,
    Siamese,
    SplitCascade,
    Swin,
    UNet,
    ViT,
    WeightStandardisation,
    resnet20,
)

__all__ = ["FROZEN", "UNCAPTURABLE", "ZOO", "Example", "resnet20"]


@dataclass(frozen=True)
class Example:
    """A model and what to call it with.

    Attributes:
        build: makes the model; seed first for the same weights again.
        arguments: makes the positional arguments for a batch size.
        keywords: makes the keyword arguments for a batch size.
        batch: the batch size of `inputs`.
        static_batch: capture it for that batch size only, since `torch.export` cannot keep it open.
    """

    build: Callable[[], nn.Module]
    arguments: Callable[[int], tuple[Any, ...]]
    keywords: Callable[[int], Mapping[str, Any]] = field(default=lambda batch: {})
    batch: int = 4
    static_batch: bool = False

    def inputs(self, batch: int | None = None) -> tuple[Any, ...]:
        """Return random positional arguments."""
        return self.arguments(batch or self.batch)

    def kwargs(self, batch: int | None = None) -> dict[str, Any]:
        """Return random keyword arguments."""
        return dict(self.keywords(batch or self.batch))


def _normal(*shape: int) -> Callable[[int], tuple[Tensor]]:
    return lambda batch: (torch.randn(batch, *shape),)


def _tokens(vocabulary: int, length: int) -> Callable[[int], tuple[Tensor]]:
    return lambda batch: (torch.randint(0, vocabulary, (batch, length)),)


def _pair(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 32, 32), torch.randn(batch, 3, 32, 32)


def _features(batch: int) -> tuple[dict[str, Tensor]]:
    return ({"x": torch.randn(batch, 8), "y": torch.randn(batch, 8)},)


def _nested(batch: int) -> dict[str, Any]:
    return {"pair": (torch.randn(batch, 3), torch.randn(batch, 3)), "scale": 2.0, "extra": None}


_IMAGE = _normal(3, 32, 32)

ZOO: dict[str, Example] = {
    "vgg": Example(VGG, _IMAGE),
    "resnet": Example(ResNet, _IMAGE),
    "resnet20": Example(partial(resnet20, 8), _IMAGE),
    "densenet": Example(DenseNet, _IMAGE),
    "mobilenet": Example(MobileNet, _IMAGE),
    "shufflenet": Example(ShuffleNet, _IMAGE),
    "unet": Example(UNet, _IMAGE),
    "vit": Example(ViT, _IMAGE),
    "swin": Example(Swin, _IMAGE),
    "siamese": Example(Siamese, _pair),
    "weight_standardisation": Example(WeightStandardisation, _normal(3, 9, 9)),
    "broadcast_mask": Example(BroadcastMask, _normal(3, 9, 9)),
    "split_cascade": Example(SplitCascade, _normal(3, 9, 9)),
    "dilated_pyramid": Example(DilatedPyramid, _normal(3, 16, 16)),
    "decoder": Example(Decoder, _normal(5)),
    "gpt": Example(GPT, _tokens(50, 16)),
    "gpt_tied": Example(partial(GPT, tied=True), _tokens(50, 16)),
    "grouped_query_attention": Example(GroupedQueryAttention, _tokens(20, 5)),
    "rotary_embedding": Example(RotaryEmbedding, _normal(5, 8)),
    "encoder": Example(Encoder, _normal(7, 32)),
    "lstm": Example(LSTM, _tokens(50, 6)),
    "gru": Example(GRU, _normal(5, 6)),
    "mlp": Example(MLP, _normal(8)),
    "shape_branch": Example(ShapeBranch, _normal(8)),
    "nested": Example(Nested, _features, _nested),
    "raw_parameters": Example(RawParameters, _normal(8)),
    "permutation": Example(Permutation, _normal(4)),
    "flip_cumsum": Example(FlipCumsum, _normal(4)),
    "low_rank": Example(LowRank, _normal(4)),
    "misaligned_sums": Example(MisalignedSums, _normal(4)),
    "outer_product": Example(OuterProduct, _normal(4)),
    "sorted_units": Example(SortedUnits, _normal(4)),
    "shared_module": Example(SharedModule, _normal(8)),
    "two_heads": Example(TwoHeads, _normal(8)),
}
"""Models that can be captured, by name."""

FROZEN = frozenset({"shape_branch", "nested", "flip_cumsum", "sorted_units", "shared_module"})
"""Those of them that have no free width."""

UNCAPTURABLE: dict[str, Example] = {
    "data_branch": Example(DataBranch, _normal(8)),
    "data_loop": Example(DataLoop, _normal(8)),
}
"""Models that cannot be captured: their control flow depends on data."""
