"""The zoo: small models that tests run on, each chosen for one hard structure."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.models.example import Example, normal, tokens
from tests.models.layers import (
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
from tests.models.tokens import GPT, GRU, LSTM, Encoder, GroupedQueryAttention, RotaryEmbedding
from tests.models.vision import (
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


def _pair(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 32, 32), torch.randn(batch, 3, 32, 32)


def _features(batch: int) -> tuple[dict[str, Tensor]]:
    return ({"x": torch.randn(batch, 8), "y": torch.randn(batch, 8)},)


def _nested(batch: int) -> dict[str, Any]:
    return {"pair": (torch.randn(batch, 3), torch.randn(batch, 3)), "scale": 2.0, "extra": None}


_IMAGE = normal(3, 32, 32)

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
    "weight_standardisation": Example(WeightStandardisation, normal(3, 9, 9)),
    "broadcast_mask": Example(BroadcastMask, normal(3, 9, 9)),
    "split_cascade": Example(SplitCascade, normal(3, 9, 9)),
    "dilated_pyramid": Example(DilatedPyramid, normal(3, 16, 16)),
    "decoder": Example(Decoder, normal(5)),
    "gpt": Example(GPT, tokens(50, 16, first=0)),
    "gpt_tied": Example(partial(GPT, tied=True), tokens(50, 16, first=0)),
    "grouped_query_attention": Example(GroupedQueryAttention, tokens(20, 5, first=0)),
    "rotary_embedding": Example(RotaryEmbedding, normal(5, 8)),
    "encoder": Example(Encoder, normal(7, 32)),
    "lstm": Example(LSTM, tokens(50, 6, first=0)),
    "gru": Example(GRU, normal(5, 6)),
    "mlp": Example(MLP, normal(8)),
    "shape_branch": Example(ShapeBranch, normal(8)),
    "nested": Example(Nested, _features, _nested),
    "raw_parameters": Example(RawParameters, normal(8)),
    "permutation": Example(Permutation, normal(4)),
    "flip_cumsum": Example(FlipCumsum, normal(4)),
    "low_rank": Example(LowRank, normal(4)),
    "misaligned_sums": Example(MisalignedSums, normal(4)),
    "outer_product": Example(OuterProduct, normal(4)),
    "sorted_units": Example(SortedUnits, normal(4)),
    "shared_module": Example(SharedModule, normal(8)),
    "two_heads": Example(TwoHeads, normal(8)),
}
"""Models that can be captured, by name."""

FROZEN = frozenset({"shape_branch", "nested", "flip_cumsum", "sorted_units", "shared_module"})
"""Those of them that have no free width."""

UNCAPTURABLE: dict[str, Example] = {
    "data_branch": Example(DataBranch, normal(8)),
    "data_loop": Example(DataLoop, normal(8)),
}
"""Models that cannot be captured: their control flow depends on data."""
