"""A small model with random weights of every model type that transformers' AutoModelForCausalLM knows.

The default config of a type is made small by the names of its fields; a type for which this is not enough has a recipe.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families import VOCAB_SIZE

TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
POSITIONS = 512
"""What a model takes; more than any text here is long."""
WINDOW = 12
ORIGINAL_POSITIONS = 48
"""Where scaling of the rotary embedding by length begins: behind the short texts and before the long ones."""
_WIDE = 4096

_SIZES: dict[str, Any] = {
    # widths
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_dim", "emb_dim", "embedding_size"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size", "lru_width"), 64),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "n_inner", "dim_ff"), 64),
    **dict.fromkeys(("dff", "d_inner", "intermediate_size_mlp", "ffn_hidden_size", "dense_intermediate_size"), 64),
    **dict.fromkeys(("feed_forward_size", "prefix_dense_intermediate_size", "attention_hidden_size"), 64),
    # depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
    "num_decoder_layers": 4,
    # heads
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head", "d_kv", "global_head_dim"), 16),
    "query_pre_attn_scalar": 16,
    "rotary_dim": 8,
    # latent attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "o_lora_rank"), 8),
    "v_head_dim": 12,
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 16),
    **dict.fromkeys(("num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    "moe_layer_end_index": 3,
    "zero_expert_num": 2,
    "encoder_hash_byte_group_vocab": 50,
    "hidden_size_global": 64,
    # recurrent layers
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    # indexed attention
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("index_head_dim",), 16),
    "index_topk": 8,
    # tokens and positions
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), POSITIONS),
    **dict.fromkeys(("max_target_positions", "context_length"), POSITIONS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "tie_word_embeddings": False,
    "is_decoder": True,
    # windows, here wider than any text
    **dict.fromkeys(("sliding_window", "window_size", "local_attention", "attention_chunk_size"), _WIDE),
    **dict.fromkeys(("sliding_window_size", "keep_window_size", "attention_window_size"), _WIDE),
    **dict.fromkeys(("sliding_window_pattern", "global_attn_every_n_layers"), 2),
    # encoders of other modalities are not run
    **dict.fromkeys(("image_size", "num_mel_bins"), 16),
    "patch_size": 8,
}
_ALWAYS = {"tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "is_decoder"} | {
    "head_dim",
    "num_key_value_heads",
}
"""Set in every config that has the field, the others where the default is not None."""

_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_TWO_KINDS = ["sliding_attention", "full_attention"] * 2
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

RECIPES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": _LATENT,
    "cohere_compass_text": {
        "layer_types": _TWO_KINDS,
        "rope_parameters": {"full_attention": _PLAIN_ROPE, "sliding_attention": _PLAIN_ROPE},
    },
    "deepseek_v2": _LATENT | _EXPERTS,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dots1": _EXPERTS | {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": _TWO_KINDS},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "max_position_embeddings": 2048},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "kimi_linear": _LATENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "mpt": {"max_seq_len": 2048},
    "moshi": {"audio_vocab_size": 32},
    "qwen4_exp": {},
    "qwen4_exp_text": {},
    "reformer": {"attn_layers": ["local", "lsh"] * 2, "axial_pos_embds": False, "attention_head_size": 16},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""By type: what the config of the text model says besides; a name with a dot is one of another part."""
RECIPES["qwen4_exp"] = RECIPES["qwen4_exp_text"] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "ple_embed_dim": 8,
    "ngram_vocab_size_base": 100,
}
RECIPES["dots3_note"] = RECIPES["dots3_note_text"] = _LATENT | {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_qk_rope_head_dim": 8,
    "swa_v_head_dim": 12,
}
RECIPES["dots3_note"] = RECIPES["dots3_note_text"] | {
    "vision_config.num_hidden_layers": 42,
    "vision_config.adapter_out_dim": 64,
    "vision_config.adapter_in_dim": 64,
    "audio_config.adapter_out_dim": 64,
    "audio_config.adapter_input_size": 64,
}
RECIPES["dbrx"] = {
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
}
_PARTS: dict[str, dict[str, str]] = {
    "fuyu": {"text_config": "persimmon"},
    "gemma3": {"vision_config": "siglip_vision_model"},
    "got_ocr2": {"text_config": "qwen2"},
    "moss_transcribe_diarize": {"text_config": "qwen3"},
}
"""By type: the model types of parts of its config that may be of any."""


_DRAFTER = "it drafts tokens for another model, from whose keys and values alone it works"
_CANNOT_STAND_ALONE = {
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "musicgen": "its class takes the config of the decoder alone, which AutoModelForCausalLM does not give it",
    "musicgen_melody": "its class takes the config of the decoder alone, which AutoModelForCausalLM does not give it",
}
"""Types whose models cannot be made, or run on tokens, and why."""


class NotBuiltError(Exception):
    """A small model of this type and variant cannot be made; says why."""


def small_config(model_type: str, **settings: Any) -> Any:
    """The config of a small model of a type; the settings go to the part of the config that describes the text."""
    config_class = CONFIG_MAPPING[model_type]
    values = _shrunk(config_class) | {
        part: {"model_type": name} | _shrunk(CONFIG_MAPPING[name]) for part, name in _PARTS.get(model_type, {}).items()
    }
    text = values
    for part in ("text_config", "decoder"):
        if isinstance(values.get(part), dict):
            text = values[part]
            break
    for name, value in (RECIPES.get(model_type, {}) | settings).items():
        part, dot, name_in_part = name.partition(".")
        if dot:
            values[part][name_in_part] = value
        else:
            text[name] = value
    return config_class(**values)


def fields_of(model_type: str) -> dict[str, Any]:
    """The fields of the part of a type's config that describes the text, with their defaults."""
    config = CONFIG_MAPPING[model_type]
    text = _sub_configs(config) | {part: CONFIG_MAPPING[name] for part, name in _PARTS.get(model_type, {}).items()}
    for part in ("text_config", "decoder"):
        if part in text:
            config = text[part]
    return {field.name: _default(field) for field in dataclasses.fields(config)}


def _sub_configs(config_class: Any) -> dict[str, Any]:
    return {
        name: part
        for name, part in getattr(config_class, "sub_configs", {}).items()
        if isinstance(part, type) and issubclass(part, PreTrainedConfig) and part is not PreTrainedConfig
    }


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


def _shrunk(config_class: Any) -> dict[str, Any]:
    """Small values for the fields of a config that have a known name."""
    values: dict[str, Any] = {}
    parts = _sub_configs(config_class)
    marks = iter(range(VOCAB_SIZE - 1, 0, -1))
    for field in dataclasses.fields(config_class):
        name = field.name
        if name in parts:
            values[name] = _shrunk(parts[name])
        elif name in _SIZES:
            if name in _ALWAYS or _default(field) is not None:
                values[name] = _SIZES[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(_default(field), int):
            values[name] = next(marks)
    return values


def build(model_type: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A random model, the same each time.

    Raises:
        NotBuiltError: transformers cannot make it.
    """
    if model_type in _CANNOT_STAND_ALONE:
        raise NotBuiltError(_CANNOT_STAND_ALONE[model_type])
    torch.manual_seed(0)
    try:
        config = small_config(model_type, **settings)
        model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > 20_000_000:
        raise NotBuiltError(f"still {size:,} parameters")
    _randomize(model)
    return model.to(dtype).eval()


@torch.no_grad()
def _randomize(model: torch.nn.Module) -> None:
    """Weights so large that the logits depend on what is attended to, which those of transformers are not."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            before = parameter.nan_to_num(0.0, 0.0, 0.0)
            parameter.copy_(before + 0.1 * noise)
        elif "embed" in name or "wte" in name or "wpe" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)


PLAIN, ATTENTION_ONLY = "plain", "attention only"
_WINDOWS = ("sliding_window", "window_size", "local_attention", "sliding_window_size", "keep_window_size")
_MORE_WINDOWS = ("attention_window_size", "local_attention_window_len")
_OWN_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "falcon": {"alibi": {"alibi": True}, "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2}},
    "dots3_note": {ATTENTION_ONLY: {"use_dsa": False}},
    "dots3_note_text": {ATTENTION_ONLY: {"use_dsa": False}},
    "gemma4_text": {"shared keys": {"num_kv_shared_layers": 2, "layer_types": _TWO_KINDS}},
    "granitemoehybrid": {
        ATTENTION_ONLY: {"layer_types": ["attention"] * 4},
        "attention only with rope": {"layer_types": ["attention"] * 4, "position_embedding_type": "rope"},
    },
    "bamba": {ATTENTION_ONLY: {"attn_layer_indices": [0, 1, 2, 3]}},
    "jamba": {ATTENTION_ONLY: {"attn_layer_period": 1, "attn_layer_offset": 0}},
}
"""What is worth a row of its own."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of setting up a type of model."""

    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    with_2d_rope: bool = False
    scales_by_length: bool = False
    """The rotary embedding depends on how long a text is by now."""
    is_thorough: bool = True
    """Whether it gets all texts, in large and in small steps, and is compared with transformers' `generate`, too: what
    differs from another variant in constants alone gets a part of them."""


def variants(model_type: str) -> list[Variant]:
    """The variants of a type: plain, with windows, with scaled rotary embeddings, in half precision, with 2D RoPE.

    Those that its config does not take are left out.
    """
    plain = Variant(PLAIN)
    try:
        config = small_config(model_type).get_text_config(decoder=True)
    except Exception:
        return [plain]  # building it says why
    return [plain, *(one for one in _variants(model_type, config) if _is_taken(model_type, one))]


def _is_taken(model_type: str, variant: Variant) -> bool:
    try:
        small_config(model_type, **variant.settings)
    except Exception:
        return False
    return True


def _variants(model_type: str, config: Any) -> Iterator[Variant]:
    fields = fields_of(model_type)
    own = _OWN_VARIANTS.get(model_type, {})
    yield from (Variant(name, settings) for name, settings in own.items())
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"} and ATTENTION_ONLY not in own:
        yield Variant(ATTENTION_ONLY, {"layer_types": ["full_attention"] * 4})
    windows = list(_windows(fields, kinds))
    yield from windows
    if "attention_chunk_size" in fields:
        yield Variant("chunks", {"attention_chunk_size": WINDOW})
    if "is_decoder" in fields and not fields["is_decoder"] and "encoder_layers" not in fields:
        yield Variant("not a decoder", {"is_decoder": False})
    yield from _scaled(model_type, config)
    yield Variant("bfloat16", dtype=torch.bfloat16, is_thorough=False)
    yield Variant("2D RoPE", with_2d_rope=True)
    yield from (Variant(f"{one.name}, 2D RoPE", one.settings, with_2d_rope=True) for one in windows[:1])


def _windows(fields: Mapping[str, Any], kinds: set[str]) -> Iterator[Variant]:
    names = [name for name in (*_WINDOWS, *_MORE_WINDOWS) if name in fields]
    if not names:
        return
    settings: dict[str, Any] = dict.fromkeys(names, WINDOW)
    if "use_sliding_window" in fields:
        settings |= {"use_sliding_window": True}
    if "max_window_layers" in fields:
        settings |= {"max_window_layers": 2}
    yield Variant("window", settings)
    if "layer_types" in fields and "sliding_window" in fields and kinds <= {"full_attention", "sliding_attention"}:
        yield Variant("window in half of the layers", settings | {"layer_types": _TWO_KINDS})
        yield Variant("window in all layers", settings | {"layer_types": ["sliding_attention"] * 4})


def _scaled(model_type: str, config: Any) -> Iterator[Variant]:
    """Ways of scaling a rotary embedding, for a config that takes them."""
    rope = getattr(config, "rope_parameters", None)
    if not rope or "mrope_section" in rope:
        return
    try:
        buffers = dict(build(model_type).named_buffers())
    except NotBuiltError:
        return
    lengths = [len(buffer) for name, buffer in buffers.items() if name.endswith("inv_freq")]
    if not lengths:
        return
    pairs = lengths[0]
    original = {"original_max_position_embeddings": ORIGINAL_POSITIONS}
    half, growing = [1.0 + 0.5 * i / pairs for i in range(pairs)], [2.0 + 3.0 * i / pairs for i in range(pairs)]
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0} | original,
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | original,
        "longrope": {"factor": 4.0, "short_factor": half, "long_factor": growing} | original,
    }
    for name, scaling in kinds.items():
        new = {"rope_type": name} | scaling
        if model_type == "phimoe":
            new |= {"short_mscale": 1.0, "long_mscale": 1.2}
        parameters = {
            key: value | new if isinstance(value, dict) else value for key, value in copy.deepcopy(rope).items()
        }
        if parameters == rope:
            parameters = rope | new
        settings: dict[str, Any] = {"rope_parameters": parameters}
        if name == "dynamic":
            settings["max_position_embeddings"] = ORIGINAL_POSITIONS
        if name in ("yarn", "llama3", "longrope") and hasattr(config, "original_max_position_embeddings"):
            settings |= original
        by_length = name in ("dynamic", "longrope") or model_type == "phimoe"
        yield Variant(f"rope {name}", settings, scales_by_length=by_length, is_thorough=by_length)
