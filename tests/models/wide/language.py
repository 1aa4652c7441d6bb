"""Language models of `transformers`, with two layers and random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.models.example import Example, tokens
from tests.models.wide.packages import from_transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
_ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED: dict[str, Any] = {**_SIZES, **_ENDS, "num_key_value_heads": 2}
_D_MODEL: dict[str, Any] = {
    **_ENDS,
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 1,
}


def _classifier(family: str, **settings: Any) -> Example:
    return from_transformers(
        f"{family}ForSequenceClassification", tokens(), "logits", **{**_SIZES, **_ENDS, **settings}
    )


def _decoder(name: str, **settings: Any) -> Example:
    return from_transformers(name, tokens(), "logits", options={"use_cache": False}, **{**_ENDS, **settings})


def _pair(batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 50, (batch, 6)), "decoder_input_ids": torch.randint(3, 50, (batch, 5))}


def _translator(name: str, **settings: Any) -> Example:
    return from_transformers(
        name, lambda batch: (), "logits", options={"use_cache": False}, keywords=_pair, **{**_D_MODEL, **settings}
    )


LANGUAGE: dict[str, Example] = {
    "albert": _classifier("Albert", embedding_size=16),
    "bart": _translator("BartForConditionalGeneration"),
    "bert": _classifier("Bert"),
    "bert_eager": _classifier("Bert", attn_implementation="eager"),
    "bloom": _decoder("BloomForCausalLM", vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
    "cohere": _decoder("CohereForCausalLM", **_GROUPED),
    "convbert": _classifier("ConvBert", embedding_size=32, head_ratio=2, conv_kernel_size=3),
    "deberta": _classifier(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4, type_vocab_size=0
    ),
    "distilbert": from_transformers(
        "DistilBertForSequenceClassification",
        tokens(),
        "logits",
        vocab_size=50,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=16,
    ),
    "electra": _classifier("Electra", embedding_size=16),
    "falcon": _decoder("FalconForCausalLM", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "fnet": _classifier("FNet", num_attention_heads=None),
    "gemma": _decoder("GemmaForCausalLM", **_GROUPED, head_dim=8),
    "gemma2": _decoder("Gemma2ForCausalLM", **_GROUPED, head_dim=8),
    "gpt2": _decoder(
        "GPT2LMHeadModel", config="GPT2Config", vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16
    ),
    "gpt_j": _decoder("GPTJForCausalLM", vocab_size=50, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=16),
    "gpt_neo": _decoder(
        "GPTNeoForCausalLM",
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=16,
        window_size=4,
    ),
    "gpt_neox": _decoder("GPTNeoXForCausalLM", **_SIZES),
    "granite": _decoder("GraniteForCausalLM", **_GROUPED),
    "llama": _decoder("LlamaForCausalLM", **_GROUPED),
    "llama_eager": _decoder("LlamaForCausalLM", **_GROUPED, attn_implementation="eager"),
    "mamba": _decoder("MambaForCausalLM", vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4),
    "mistral": _decoder("MistralForCausalLM", **_GROUPED, sliding_window=4),
    "mixtral": _decoder("MixtralForCausalLM", **_GROUPED, num_local_experts=4, experts_implementation="batched_mm"),
    "mobilebert": _classifier(
        "MobileBert",
        intra_bottleneck_size=16,
        embedding_size=16,
        num_feedforward_networks=2,
        true_hidden_size=16,
    ),
    "modernbert": _classifier("ModernBert", global_attn_every_n_layers=1, cls_token_id=1, sep_token_id=2),
    "mpnet": _classifier("MPNet"),
    "olmo": _decoder("OlmoForCausalLM", **_GROUPED),
    "opt": _decoder(
        "OPTForCausalLM",
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
    ),
    "phi": _decoder("PhiForCausalLM", **_GROUPED),
    "phi3": _decoder("Phi3ForCausalLM", **_GROUPED),
    "qwen2": _decoder("Qwen2ForCausalLM", **_GROUPED),
    "qwen3": _decoder("Qwen3ForCausalLM", **_GROUPED, head_dim=8),
    "roberta": _classifier("Roberta", max_position_embeddings=20),
    "squeezebert": _classifier("SqueezeBert", embedding_size=32),
    "stablelm": _decoder("StableLmForCausalLM", **_GROUPED),
    "t5": from_transformers(
        "T5ForConditionalGeneration",
        lambda batch: (),
        "logits",
        options={"use_cache": False},
        keywords=_pair,
        vocab_size=50,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        **_ENDS,
    ),
    "xlnet": from_transformers(
        "XLNetForSequenceClassification",
        tokens(),
        "logits",
        options={"use_mems": False},
        vocab_size=50,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=48,
    ),
}
"""Models over tokens, by name."""
