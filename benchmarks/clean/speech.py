"""Speech models of `transformers`: connectionist temporal classification and translation."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.clean.case import Case, Workload, add, own_loss
from benchmarks.clean.language import _made

_WORDS = 20


def _ctc(architecture: str, options: dict[str, Any], samples: int, batch: int) -> Workload:
    """Raw audio; the connectionist temporal classification loss."""
    model = _made(architecture, options, ctc_loss_reduction="mean")
    inputs = {
        "input_values": torch.randn(batch, samples),
        "labels": torch.randint(1, _WORDS, (batch, 4)),
    }
    return Workload(model, inputs, own_loss)


def _whisper(options: dict[str, Any], frames: int, batch: int) -> Workload:
    model = _made("WhisperForConditionalGeneration", options)
    inputs = {
        "input_features": torch.randn(batch, model.config.num_mel_bins, frames),
        "labels": torch.randint(0, 60, (batch, 8)),
    }
    return Workload(model, inputs, own_loss)


def _audio_classifier(options: dict[str, Any]) -> Workload:
    model = _made("ASTForAudioClassification", options, num_labels=4)
    spectrum = torch.randn(2, model.config.max_length, model.config.num_mel_bins)
    return Workload(model, {"input_values": spectrum, "labels": torch.tensor([0, 3])}, own_loss)


_WAV2VEC2 = {
    "vocab_size": _WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0, "pad_token_id": 0,
}  # fmt: skip
_WHISPER = {
    "vocab_size": 96, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_source_positions": 16, "max_target_positions": 20,
    "pad_token_id": 93, "bos_token_id": 94, "eos_token_id": 94, "decoder_start_token_id": 95,
    "begin_suppress_tokens": None, "suppress_tokens": None,
}  # fmt: skip

add(Case("Wav2Vec2", lambda: _ctc("Wav2Vec2ForCTC", _WAV2VEC2, 600, 2)))
add(Case("Wav2Vec2, layer norm", lambda: _ctc("Wav2Vec2ForCTC", {
    **_WAV2VEC2, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
    "conv_bias": True}, 600, 2)))  # fmt: skip
add(Case("HuBERT", lambda: _ctc("HubertForCTC", _WAV2VEC2, 600, 2)))
add(Case("WavLM", lambda: _ctc("WavLMForCTC", _WAV2VEC2, 600, 2)))
add(Case("Whisper", lambda: _whisper(_WHISPER, 32, 2)))
add(Case("AST", lambda: _audio_classifier({
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16,
    "num_mel_bins": 16})))  # fmt: skip
add(Case("Whisper tiny", lambda: _whisper({
    "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
    "begin_suppress_tokens": None}, 3000, 1), real=True))  # fmt: skip
