"""Language models of `transformers`, with the loss they compute from labels themselves."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.clean.case import Case, Workload, add, own_loss

TOKENS = 12
WORDS = 96
_BATCH = 2


def _made(architecture: str, options: dict[str, Any], **fixed: Any) -> Any:
    """A model of `transformers` by class name, in training mode, from its configuration."""
    import transformers

    model_class = getattr(transformers, architecture)
    return model_class(model_class.config_class(**options, **fixed)).train()


def _language_model(
    architecture: str, options: dict[str, Any], tokens: int, batch: int
) -> Workload:
    model = _made(architecture, options)
    words = model.config.get_text_config().vocab_size
    ids = torch.randint(3, words, (batch, tokens))
    inputs = {"input_ids": ids, "attention_mask": _mask(batch, tokens), "labels": ids.clone()}
    return Workload(model, inputs, own_loss)


def _mask(batch: int, tokens: int) -> torch.Tensor:
    """Ones, and a padded end in the last row."""
    mask = torch.ones(batch, tokens, dtype=torch.long)
    if batch > 1:
        mask[-1, -tokens // 4 :] = 0
    return mask


def _classifier(architecture: str, options: dict[str, Any]) -> Workload:
    model = _made(architecture, options, num_labels=3)
    inputs = {
        "input_ids": torch.randint(3, model.config.vocab_size, (_BATCH, TOKENS)),
        "attention_mask": _mask(_BATCH, TOKENS),
        "labels": torch.tensor([0, 2]),
    }
    return Workload(model, inputs, own_loss)


def _pretraining(architecture: str, options: dict[str, Any]) -> Workload:
    """The task of ELECTRA's discriminator: which tokens were replaced."""
    model = _made(architecture, options)
    inputs = {
        "input_ids": torch.randint(3, model.config.vocab_size, (_BATCH, TOKENS)),
        "attention_mask": _mask(_BATCH, TOKENS),
        "labels": torch.randint(0, 2, (_BATCH, TOKENS)),
    }
    return Workload(model, inputs, own_loss)


def _translation(architecture: str, options: dict[str, Any], tokens: int, batch: int) -> Workload:
    model = _made(architecture, options)
    ids = torch.randint(3, model.config.vocab_size, (batch, tokens))
    labels = torch.randint(3, model.config.vocab_size, (batch, tokens - 2))
    inputs = {"input_ids": ids, "attention_mask": _mask(batch, tokens), "labels": labels}
    return Workload(model, inputs, own_loss)


_BERT = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 40,
}  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
_T5 = {
    "vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": WORDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 40, "pad_token_id": 1,
    "decoder_start_token_id": 2,
}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", _BERT),
    "RoBERTa": ("RobertaForMaskedLM", _BERT),
    "DistilBERT": (
        "DistilBertForMaskedLM",
        {"vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
         "max_position_embeddings": 40},
    ),
    "ALBERT": ("AlbertForMaskedLM", {**_BERT, "embedding_size": 16}),
    "ELECTRA generator": ("ElectraForMaskedLM", {**_BERT, "embedding_size": 16}),
    "MPNet": ("MPNetForMaskedLM", _BERT),
    "ModernBERT": ("ModernBertForMaskedLM", {**_BERT, **_SPECIAL, "global_attn_every_n_layers": 2,
                                             "cls_token_id": 1, "sep_token_id": 2}),
    "DeBERTa-v2": (
        "DebertaV2ForMaskedLM",
        {**_BERT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
         "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "Longformer": ("LongformerForMaskedLM", {**_BERT, "attention_window": [4, 4]}),
    "Funnel": (
        "FunnelForMaskedLM",
        {"vocab_size": WORDS, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8,
         "d_inner": 64, "num_decoder_layers": 1},
    ),
    "XLNet": ("XLNetLMHeadModel", {"vocab_size": WORDS, "d_model": 32, "n_layer": 2, "n_head": 4,
                                   "d_inner": 64}),
    "FNet": ("FNetForMaskedLM", {**_BERT, "use_tpu_fourier_optimizations": False}),
    "Reformer": (
        "ReformerModelWithLMHead",
        {"vocab_size": WORDS, "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8,
         "feed_forward_size": 64, "attn_layers": ["local", "local"], "is_decoder": True,
         "axial_pos_embds": False, "max_position_embeddings": 40, "local_attn_chunk_length": 4},
    ),
    "GPT-2": ("GPT2LMHeadModel", _GPT2),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 40},
    ),
    "GPT-J": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", _BERT),
    "OPT": (
        "OPTForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "word_embed_proj_dim": 32},
    ),
    "BLOOM": ("BloomForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2,
                                   "n_head": 4}),
    "MPT": ("MptForCausalLM", {"vocab_size": WORDS, "d_model": 32, "n_layers": 2, "n_heads": 4,
                               "max_seq_len": 40}),
    "Falcon": (
        "FalconForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "Phi": ("PhiForCausalLM", {**_LLAMA, **_SPECIAL}),
    "Phi-3": ("Phi3ForCausalLM", {**_LLAMA, **_SPECIAL}),
    "Llama": ("LlamaForCausalLM", _LLAMA),
    "Mistral": ("MistralForCausalLM", {**_LLAMA, "sliding_window": 6}),
    "Mixtral (MoE)": ("MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4,
                                             "output_router_logits": True}),
    "Qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 32, "output_router_logits": True},
    ),
    "Qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "Gemma": ("GemmaForCausalLM", {**_LLAMA, **_SPECIAL, "head_dim": 8}),
    "Gemma-2": ("Gemma2ForCausalLM", {**_LLAMA, **_SPECIAL, "head_dim": 8}),
    "OLMo-2": ("Olmo2ForCausalLM", {**_LLAMA, **_SPECIAL}),
    "Mamba": ("MambaForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2,
                                   "state_size": 4}),
    "Mamba-2": (
        "Mamba2ForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
         "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    ),
    "RWKV": (
        "RwkvForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "attention_hidden_size": 32,
         "intermediate_size": 64, "num_hidden_layers": 2, "context_length": 40},
    ),
}  # fmt: skip

_TRANSLATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration", _T5),
    "mT5": ("MT5ForConditionalGeneration", _T5),
    "UMT5": ("UMT5ForConditionalGeneration", _T5),
    "BART": ("BartForConditionalGeneration", _BART),
    "Pegasus": ("PegasusForConditionalGeneration", _BART),
    "Marian": ("MarianMTModel", _BART),
    "LED": ("LEDForConditionalGeneration", {
        **{k: v for k, v in _BART.items() if k != "max_position_embeddings"},
        "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40,
        "attention_window": 4}),
}  # fmt: skip

for _name, (_class, _options) in _LANGUAGE_MODELS.items():
    _half = _name != "FNet"  # the Fourier transform is not defined for bfloat16
    add(Case(_name, lambda c=_class, o=_options: _language_model(c, o, TOKENS, _BATCH), half=_half))
for _name, (_class, _options) in _TRANSLATORS.items():
    add(Case(_name, lambda c=_class, o=_options: _translation(c, o, TOKENS, _BATCH)))
add(Case("ELECTRA", lambda: _pretraining("ElectraForPreTraining", {**_BERT, "embedding_size": 16})))
add(Case("BERT classifier", lambda: _classifier("BertForSequenceClassification", _BERT)))

_REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT base": ("BertForMaskedLM", {}),
    "DistilBERT base": ("DistilBertForMaskedLM", {}),
    "GPT-2 small": ("GPT2LMHeadModel", {}),
    "OPT 125M": (
        "OPTForCausalLM",
        {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "Mamba 130M": ("MambaForCausalLM", {"num_hidden_layers": 24}),
    "Qwen2 0.5B, 6 layers": (
        "Qwen2ForCausalLM",
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6,
         "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 32000},
    ),
}  # fmt: skip
for _name, (_class, _options) in _REAL.items():
    add(Case(_name, lambda c=_class, o=_options: _language_model(c, o, 128, 1), real=True))
add(
    Case(
        "T5 small",
        lambda: _translation("T5ForConditionalGeneration", {"decoder_start_token_id": 0}, 128, 1),
        real=True,
    )
)
