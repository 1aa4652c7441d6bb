"""Models of other packages that are called in every usual way are written module by module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from archir.emit.layouts import draft
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from frontends.pytorch import trace
from tools.unet import UNet

pytestmark = pytest.mark.slow
IDS = torch.arange(10).reshape(2, 5)
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]).long()
POSITIONS = torch.arange(5).expand(2, 5).contiguous()


def check_emission(model: nn.Module, tmp_path: Path, *args: Tensor, **kwargs: object) -> str:
    graph = trace(model.eval(), args, kwargs)
    text = to_python(graph, tmp_path).path.read_text()
    assert text == draft(graph, "modules").text
    return text


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (GPT2LMHeadModel, {}),
        (GPT2LMHeadModel, {"attention_mask": MASK}),
        (GPT2Model, {"position_ids": POSITIONS}),
        (GPT2ForSequenceClassification, {"attention_mask": MASK, "position_ids": POSITIONS}),
    ],
)
def test_gpt2(kind: type[nn.Module], kwargs: dict[str, Tensor], tmp_path: Path) -> None:
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=12, n_positions=8, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    text = check_emission(kind(config), tmp_path, IDS, **kwargs, use_cache=False)
    assert "class GPT2Block(nn.Module):" in text


@pytest.mark.parametrize("kind", [GPT2Model, GPT2LMHeadModel])
def test_gpt2_from_embeddings(kind: type[nn.Module], tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=12, n_positions=8, bos_token_id=1, eos_token_id=1)
    text = check_emission(kind(config), tmp_path, inputs_embeds=torch.randn(2, 5, 8), use_cache=False)
    assert "class GPT2Block(nn.Module):" in text


class Pyramid(nn.Module):
    """The head of a DeepLab: dilated convolutions beside the mean of the image, enlarged to its size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, stride=4, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.branches = nn.ModuleList(nn.Conv2d(channels, 4, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(16, 2, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        mean = F.interpolate(self.pooled(y), size=y.shape[-2:], mode="bilinear", align_corners=False)
        found = self.project(torch.cat([*(branch(y) for branch in self.branches), mean], 1))
        return F.interpolate(found, size=x.shape[-2:], mode="bilinear", align_corners=False)


def test_deeplab(tmp_path: Path) -> None:
    model = Pyramid(6)
    text = check_emission(model, tmp_path, torch.randn(2, 3, 16, 24))
    assert text.count("F.interpolate(") == 2
    graph = trace(model.eval(), torch.randn(2, 3, 16, 24))
    assert to_onnx(graph, tmp_path / "net.onnx").difference < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_bert(masked: bool, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    kwargs = {"attention_mask": MASK} if masked else {}
    assert "class BertEmbeddings(nn.Module):" in check_emission(BertModel(config), tmp_path, IDS, **kwargs)


def test_unet(tmp_path: Path) -> None:
    text = check_emission(UNet(), tmp_path, torch.randn(2, 3, 32, 32))
    assert text.count("F.interpolate(x, size=[") == 5
