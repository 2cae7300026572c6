"""Tiny random models of many families, made from a config: what "any Hugging Face model" is tested on."""

from __future__ import annotations

import os
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

DEVICE = os.environ.get("PARALLELMIND_TEST_DEVICE", "cpu")
"""Where the tiny models of tests/engine and tests/columnar run: `PARALLELMIND_TEST_DEVICE=cuda` tries them on a GPU."""
VOCAB_SIZE = 97
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    # Large weights: with the usual 0.02 the logits hardly depend on what is attended to.
    "initializer_range": 0.2,
}
_WINDOW = 6
_MIXED = {"sliding_window": _WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16} | _MIXED
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "llama": {},
    "mistral": {"sliding_window": _WINDOW, "head_dim": 16},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": {},
    "olmo2": {},
    "glm": {"head_dim": 16},
    "stablelm": {"partial_rotary_factor": 0.5},
    "cohere": {},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "granite": {},
    "smollm3": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": _MOE,
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
}
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2} | _MIXED,
    "cohere2": {"head_dim": 16} | _MIXED,
    "phi": {},
    "olmo3": _MIXED,
    "nemotron": {},
    "starcoder2": {"sliding_window": _WINDOW},
    "phimoe": {"num_local_experts": 4, "sliding_window": _WINDOW},
    "qwen2_moe": _MOE
    | {"shared_expert_intermediate_size": 16, "sliding_window": _WINDOW}
    | {"use_sliding_window": True, "max_window_layers": 1},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
}
CHUNKED_FAMILY, CHUNKED = (
    "llama4_text",
    {
        "attention_chunk_size": 6,
        "layer_types": ["chunked_attention", "full_attention"],
        "num_local_experts": 4,
        "head_dim": 16,
        "intermediate_size_mlp": 32,
    },
)
"""A family with chunks, which has no 2D RoPE, and the settings with which it is tiny."""
WITHOUT_ROPE = ("gpt2", "opt", "bloom", "mpt")


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A random model of a family, the same each time."""
    torch.manual_seed(0)
    settings = _COMMON | FAMILIES.get(family, {}) | MORE_FAMILIES.get(family, {}) | overrides
    config = AutoConfig.for_model(family, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(DEVICE).eval()


def char_tokenizer() -> Any:
    """A tokenizer of single characters that fits the tiny models: 3 special tokens and 94 printable characters."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>"])}
    vocabulary |= {chr(33 + index): 3 + index for index in range(VOCAB_SIZE - 3)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
