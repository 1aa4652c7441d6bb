"""Models of other packages than `transformers`, small and with random weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.example import Example, normal
from tests.models.wide.packages import build, from_package

_MONAI = partial(from_package, "monai.networks.nets")
_IMAGE = normal(1, 16, 16)

MONAI: dict[str, Example] = {
    "attention_unet": _MONAI("AttentionUnet", _IMAGE, 2, 1, 2, (4, 8, 16), (2, 2)),
    "autoencoder": _MONAI("AutoEncoder", _IMAGE, 2, 1, 1, (4, 8), (2, 2), num_res_units=1),
    "basic_unet": _MONAI("BasicUNet", normal(1, 32, 32), 2, 1, 2, (4, 4, 8, 8, 16, 4)),
    "basic_unet_plus_plus": _MONAI("BasicUNetPlusPlus", normal(1, 32, 32), 2, 1, 2, (4, 4, 8, 8, 16, 4)),
    "densenet": _MONAI("DenseNet", normal(1, 32, 32), 2, 1, 3, 8, 4, (2, 2)),
    "diffusion_unet": Example(
        partial(
            build,
            "monai.networks.nets",
            "DiffusionModelUNet",
            2,
            1,
            1,
            num_res_blocks=1,
            channels=(8, 16),
            attention_levels=(False, True),
            num_head_channels=8,
            norm_num_groups=4,
        ),
        lambda batch: (torch.randn(batch, 1, 16, 16), torch.randint(0, 10, (batch,))),
        batch=2,
    ),
    "dynunet": _MONAI("DynUNet", _IMAGE, 2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 16)),
    "highresnet": _MONAI(
        "HighResNet",
        _IMAGE,
        2,
        1,
        2,
        layer_params=(
            {"name": "conv_0", "n_features": 4, "kernel_size": 3},
            {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 2},
            {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 1},
            {"name": "conv_1", "n_features": 8, "kernel_size": 1},
            {"name": "conv_2", "kernel_size": 1},
        ),
    ),
    "resnet3d": _MONAI(
        "ResNet", normal(1, 16, 16, 16), "basic", (1, 1, 1, 1), (4, 8, 8, 16), n_input_channels=1, num_classes=3
    ),
    "segresnet": _MONAI(
        "SegResNet", _IMAGE, 2, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)
    ),
    "segresnet_ds": _MONAI(
        "SegResNetDS", _IMAGE, 2, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)
    ),
    "swin_unetr": _MONAI(
        "SwinUNETR",
        normal(1, 64, 64),
        in_channels=1,
        out_channels=2,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 2),
        feature_size=12,
        spatial_dims=2,
        window_size=4,
    ),
    "unet": _MONAI("UNet", _IMAGE, 2, 1, 2, (4, 8, 16), (2, 2), num_res_units=1),
    "unet3d": _MONAI("UNet", normal(1, 8, 8, 8), 3, 1, 2, (4, 8), (2,)),
    "vit": _MONAI("ViT", _IMAGE, 1, (16, 16), (4, 4), 32, 48, 2, 4, classification=True, spatial_dims=2),
}
"""Models of `monai`, by name."""


def _graph(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(5 * batch, 6), torch.randint(0, 5, (2, 12))


_PYG = partial(from_package, "torch_geometric.nn.models")

GRAPHS: dict[str, Example] = {
    "edge_cnn": _PYG("EdgeCNN", _graph, 6, 16, 2, 3),
    "gat": _PYG("GAT", _graph, 6, 16, 2, 3, heads=2),
    "gcn": _PYG("GCN", _graph, 6, 16, 2, 3),
    "gin": _PYG("GIN", _graph, 6, 16, 2, 3),
    "graph_sage": _PYG("GraphSAGE", _graph, 6, 16, 2, 3),
    "pna": _PYG(
        "PNA",
        _graph,
        6,
        16,
        2,
        3,
        aggregators=["mean", "max"],
        scalers=["identity", "amplification"],
        deg=torch.tensor([0, 2, 3]),
    ),
}
"""Models of `torch_geometric`, by name."""


class _Tokens(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        layers = build(
            "x_transformers",
            settings.pop("layers"),
            dim=32,
            depth=2,
            heads=2,
            attn_dim_head=32,
            rotary_emb_dim=32,
            **settings,
        )
        self.net = build("x_transformers", "TransformerWrapper", num_tokens=50, max_seq_len=16, attn_layers=layers)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def _token_numbers(batch: int) -> tuple[Tensor]:
    return (torch.randint(0, 50, (batch, 6)),)


def _table(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4), torch.randint(0, 2, (batch, 2))


_RTDL = "rtdl_revisiting_models"

TABLES: dict[str, Example] = {
    "ft_transformer": Example(
        partial(
            build,
            _RTDL,
            "FTTransformer",
            n_cont_features=4,
            cat_cardinalities=[2, 2],
            d_out=3,
            n_blocks=2,
            d_block=16,
            attention_n_heads=4,
            attention_dropout=0.1,
            ffn_d_hidden=None,
            ffn_d_hidden_multiplier=2.0,
            ffn_dropout=0.1,
            residual_dropout=0.0,
        ),
        _table,
        batch=4,
    ),
    "mlp": from_package(_RTDL, "MLP", normal(8), d_in=8, d_out=3, n_blocks=2, d_block=16, dropout=0.1, batch=4),
    "resnet": from_package(
        _RTDL,
        "ResNet",
        normal(8),
        d_in=8,
        d_out=3,
        n_blocks=2,
        d_block=16,
        d_hidden=24,
        d_hidden_multiplier=None,
        dropout1=0.1,
        dropout2=0.1,
        batch=4,
    ),
}
"""Models of `rtdl_revisiting_models`, by name."""

TOKENS: dict[str, Example] = {
    "decoder": Example(
        partial(_Tokens, layers="Decoder", rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True), _token_numbers, batch=2
    ),
    "encoder": Example(partial(_Tokens, layers="Encoder", rel_pos_bias=True), _token_numbers, batch=2),
}
"""Models of `x_transformers`, by name."""
