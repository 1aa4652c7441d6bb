"""Audio and time-series models of `transformers`, small and with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.models.example import Example, normal
from tests.models.wide.packages import from_transformers

_SPEECH: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (8, 8, 8),
    "conv_stride": (4, 2, 2),
    "conv_kernel": (5, 3, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}


def _spectrogram(batch: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(batch, 8, 16), "decoder_input_ids": torch.randint(3, 50, (batch, 5))}


AUDIO: dict[str, Example] = {
    "ast": from_transformers(
        "ASTForAudioClassification",
        normal(16, 16),
        "logits",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=4,
        frequency_stride=4,
        time_stride=4,
        max_length=16,
        num_mel_bins=16,
    ),
    "hubert": from_transformers("HubertForCTC", normal(400), "logits", **_SPEECH),
    "patchtst": from_transformers(
        "PatchTSTForPrediction",
        normal(24, 3),
        "prediction_outputs",
        config="PatchTSTConfig",
        num_input_channels=3,
        context_length=24,
        patch_length=4,
        patch_stride=4,
        prediction_length=6,
        d_model=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=32,
    ),
    "patchtsmixer": from_transformers(
        "PatchTSMixerForPrediction",
        normal(24, 3),
        "prediction_outputs",
        num_input_channels=3,
        context_length=24,
        patch_length=4,
        patch_stride=4,
        prediction_length=6,
        d_model=16,
        num_layers=2,
    ),
    "sew": from_transformers("SEWForCTC", normal(400), "logits", config="SEWConfig", **_SPEECH, squeeze_factor=2),
    "wav2vec2": from_transformers("Wav2Vec2ForCTC", normal(400), "logits", **_SPEECH),
    "wavlm": from_transformers("WavLMForCTC", normal(400), "logits", config="WavLMConfig", **_SPEECH),
    "whisper": from_transformers(
        "WhisperForConditionalGeneration",
        lambda batch: (),
        "logits",
        options={"use_cache": False},
        keywords=_spectrogram,
        vocab_size=50,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=8,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
}
"""Models over sound and series, by name."""

UNCAPTURABLE: dict[str, Example] = {
    "encodec": from_transformers(
        "EncodecModel",
        lambda batch: (torch.randn(batch, 1, 320),),
        "audio_values",
        num_filters=4,
        hidden_size=8,
        codebook_size=16,
        codebook_dim=8,
        upsampling_ratios=[2, 2],
        target_bandwidths=[3.2],
        sampling_rate=1600,
        num_lstm_layers=1,
    ),
}
"""Models whose control flow depends on data."""
