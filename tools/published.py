"""Models of other packages at the sizes they were published in, with random weights, to compare times on."""

from __future__ import annotations

from tests.models.example import Example, normal, tokens
from tests.models.wide.packages import from_package, from_transformers

_IMAGE = normal(3, 224, 224)
_TEXT = tokens(1000, 16)

PUBLISHED: dict[str, Example] = {
    "resnet_50": from_transformers("ResNetForImageClassification", _IMAGE, "logits"),
    "regnet_y": from_transformers("RegNetForImageClassification", _IMAGE, "logits"),
    "convnext_tiny": from_transformers("ConvNextForImageClassification", _IMAGE, "logits"),
    "mobilenet_v2": from_transformers("MobileNetV2ForImageClassification", _IMAGE, "logits"),
    "densenet_121": from_package("monai.networks.nets", "DenseNet121", _IMAGE, 2, 3, 1000),
    "vit_base": from_transformers("ViTForImageClassification", _IMAGE, "logits"),
    "swin_tiny": from_transformers("SwinForImageClassification", _IMAGE, "logits"),
    "segformer_b0": from_transformers("SegformerForSemanticSegmentation", _IMAGE, "logits"),
    "bert_base": from_transformers("BertForSequenceClassification", _TEXT, "logits"),
    "distilbert_base": from_transformers("DistilBertForSequenceClassification", _TEXT, "logits"),
    "gpt2_small": from_transformers(
        "GPT2LMHeadModel", _TEXT, "logits", config="GPT2Config", options={"use_cache": False}
    ),
}
"""Models of `transformers` with the sizes of their default configurations, and one of `monai`, by name."""
