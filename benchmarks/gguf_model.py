"""The random llama model of the serving benchmark in llama.cpp's file format, with the same words as its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, *, words: list[str], chat_template: str) -> None:
    """Write the float32 model in `folder`, whose token i is the word i and whose last word stands for all others."""
    import gguf

    model = LlamaForCausalLM.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    # A unigram vocabulary takes whole words; the others build them from parts that are not there.
    writer.add_tokenizer_model("t5")
    writer.add_token_list([f"\u2581{word}" for word in words[:-1]] + words[-1:])
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(words) - 1) + [gguf.TokenType.UNKNOWN])
    for token in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{token}_token_id")(len(words) - 1)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(chat_template)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied to the embedding
            writer.add_tensor(*_tensor(name, weight.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor(name: str, weight: NDArray[np.float32], config: Any) -> tuple[str, NDArray[np.float32]]:
    """Its name there; queries and keys with the halves of each rotary pair beside each other."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", weight
    if name == "model.norm.weight":
        return "output_norm.weight", weight
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    part = rest.removesuffix(".weight")
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(part)
    if heads is not None:
        weight = weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
    return f"blk.{number}.{_LAYER[part]}.weight", np.ascontiguousarray(weight)
