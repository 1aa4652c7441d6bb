"""Vision models of `transformers`, small and with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.models.example import Example, normal
from tests.models.wide.packages import from_transformers

_PATCHES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def _classifier(name: str, size: int = 32, **settings: Any) -> Example:
    return from_transformers(name, normal(3, size, size), "logits", **settings)


def _text_and_image(batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 50, (batch, 6)), "pixel_values": torch.randn(batch, 3, 16, 16)}


_TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def _contrastive(name: str, **settings: Any) -> Example:
    return from_transformers(
        name,
        lambda batch: (),
        "logits_per_image",
        keywords=_text_and_image,
        text_config=_TEXT,
        vision_config=_PATCHES,
        **settings,
    )


VISION: dict[str, Example] = {
    "beit": _classifier("BeitForImageClassification", 16, **_PATCHES, use_relative_position_bias=True),
    "bit": _classifier(
        "BitForImageClassification",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="preactivation",
        num_groups=4,
    ),
    "clip": _contrastive("CLIPModel", projection_dim=24),
    "convnext": _classifier("ConvNextForImageClassification", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "convnextv2": _classifier("ConvNextV2ForImageClassification", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "cvt": _classifier("CvtForImageClassification", embed_dim=[8, 16, 32], depth=[1, 2, 3], num_heads=[1, 2, 4]),
    "deit": _classifier("DeiTForImageClassification", 16, **_PATCHES),
    "dinov2": _classifier("Dinov2ForImageClassification", 16, **{**_PATCHES, "mlp_ratio": 2}),
    "efficientnet": _classifier(
        "EfficientNetForImageClassification",
        width_coefficient=0.5,
        depth_coefficient=0.3,
        hidden_dim=640,
        depth_divisor=4,
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
    ),
    "focalnet": _classifier(
        "FocalNetForImageClassification",
        image_size=32,
        embed_dim=8,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "hiera": _classifier(
        "HieraForImageClassification",
        image_size=[32, 32],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        embed_dim=16,
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        num_query_pool=1,
        masked_unit_size=[4, 4],
        query_stride=[2, 2],
    ),
    "levit": _classifier(
        "LevitForImageClassification",
        64,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        patch_size=16,
    ),
    "mobilenet_v1": _classifier("MobileNetV1ForImageClassification", depth_multiplier=0.25, min_depth=4),
    "mobilenet_v2": _classifier(
        "MobileNetV2ForImageClassification", depth_multiplier=0.25, min_depth=4, depth_divisible_by=4
    ),
    "mobilevit": _classifier(
        "MobileViTForImageClassification",
        image_size=32,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
        num_attention_heads=2,
        expand_ratio=2.0,
    ),
    "mobilevitv2": _classifier(
        "MobileViTV2ForImageClassification",
        64,
        image_size=64,
        width_multiplier=0.25,
        n_attn_blocks=[1, 1, 1],
        base_attn_unit_dims=[32, 32, 32],
    ),
    "poolformer": _classifier(
        "PoolFormerForImageClassification", config="PoolFormerConfig", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]
    ),
    "pvt": _classifier(
        "PvtForImageClassification",
        image_size=32,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        sequence_reduction_ratios=[2, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "pvt_v2": _classifier(
        "PvtV2ForImageClassification",
        image_size=32,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        sr_ratios=[2, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "regnet": _classifier(
        "RegNetForImageClassification", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4
    ),
    "resnet": _classifier("ResNetForImageClassification", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]),
    "segformer": from_transformers(
        "SegformerForSemanticSegmentation",
        normal(3, 32, 32),
        "logits",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        sr_ratios=[2, 2, 1, 1],
        decoder_hidden_size=16,
        mlp_ratios=[2, 2, 2, 2],
        num_labels=4,
    ),
    "siglip": _contrastive("SiglipModel"),
    "swin": _classifier(
        "SwinForImageClassification",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    "swinv2": _classifier(
        "Swinv2ForImageClassification",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    "vit": _classifier("ViTForImageClassification", 16, **_PATCHES),
    "detr": from_transformers(
        "DetrForObjectDetection",
        normal(3, 32, 32),
        "logits",
        "pred_boxes",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config={
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "out_features": ["stage2"],
        },
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=5,
    ),
    "depth_anything": from_transformers(
        "DepthAnythingForDepthEstimation",
        normal(3, 28, 28),
        "predicted_depth",
        backbone_config={
            "model_type": "dinov2",
            "image_size": 28,
            "patch_size": 14,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_ratio": 2,
            "out_features": ["stage1", "stage2"],
            "reshape_hidden_states": False,
        },
        patch_size=14,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16],
        reassemble_factors=[2, 1],
        fusion_hidden_size=16,
        head_hidden_size=8,
    ),
    "vit_msn": _classifier("ViTMSNForImageClassification", 16, **_PATCHES),
    "videomae": from_transformers(
        "VideoMAEForVideoClassification", normal(4, 3, 16, 16), "logits", **_PATCHES, num_frames=4, tubelet_size=2
    ),
}
"""Models over images, by name."""
