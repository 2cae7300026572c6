"""Models in 8 and 4 bits: one way to quantize, for training and for answering."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from parallelmind.errors import SettingsError
from parallelmind.models.identity import model_path
from parallelmind.settings.model import ModelOptions

_PACKED_ROWS, _PACKED_COLUMNS = 32, 64
"""bitsandbytes packs 4-bit weights of multiples of this size only for processors with bf16 instructions."""
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}


def quantization_of(options: ModelOptions, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` takes beside the number format: nothing for a model that stays as it is.

    4 bits are NF4, with quantized constants: Dettmers et al., 2023, https://arxiv.org/abs/2305.14314. A model that is
    stored quantized is loaded as it was stored.

    Raises:
        SettingsError: bitsandbytes is missing, or the model is stored in other bits.
    """
    flag = _flag(options)
    stored = _stored(options.base_model)
    if stored:
        bits = next((name for name in ("load_in_4bit", "load_in_8bit") if stored.get(name)), "")
        if flag and f"--{bits}" != flag:
            method = stored.get("quant_method", "quantized")
            raise SettingsError(
                f"{flag}: --base_model {options.base_model} is stored in {_named(bits) or f'the form {method}'} "
                f"already; leave {flag} out, or take the model that it was made of."
            )
        if bits:
            _check_installed(f"--base_model {options.base_model}, which is stored in {_named(bits)}, needs")
        return {}
    if flag is None:
        return {}
    _check_installed("--load_in_4bit and --load_in_8bit need")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_8bit=options.load_in_8bit,
        load_in_4bit=options.load_in_4bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def is_to_be_quantized(options: ModelOptions) -> bool:
    """Whether its weights are quantized as they are read, which is done on their device."""
    return _flag(options) is not None or bool(_stored(options.base_model))


def is_quantized(model: Any) -> bool:
    """Whether transformers made it a quantized model."""
    return bool(getattr(model, "is_quantized", False))


def quantization_name(model: Any) -> str:
    """How its weights are quantized: "4 bits", "8 bits", or the name of another method; "" if they are not."""
    if not is_quantized(model):
        return ""
    config: Any = getattr(model.config, "quantization_config", None)
    values = config if isinstance(config, dict) else config.to_dict() if config is not None else {}
    bits = next((name for name in ("load_in_4bit", "load_in_8bit") if values.get(name)), "")
    return _named(bits) or str(values.get("quant_method", "another form"))


def settle(model: nn.Module, *, trained: bool = False) -> None:
    """Keep bitsandbytes from what would break a quantized model, or fill the screen.

    On processors with bf16 instructions it packs 4-bit weights at the first forward in eval mode, into a form that
    passes no gradients on and that some sizes do not have.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            fits = layer.out_features % _PACKED_ROWS == 0 and layer.in_features % _PACKED_COLUMNS == 0
            layer.support_avx512bf16_for_cpu = layer.support_avx512bf16_for_cpu and fits and not trained
    # It says at each forward that 8-bit layers round what goes into them.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def to_float32(model: nn.Module) -> None:
    """The weights in half precision, and what quantized layers compute in."""
    nn.Module.float(model)  # transformers refuses its own for a quantized model, of which this leaves the integers
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "compute_dtype"):  # of bitsandbytes, in 4 bits
            layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weights are not plain floating-point numbers."""
    weight = getattr(module, "weight", None)
    is_linear = hasattr(module, "in_features") and hasattr(module, "out_features")
    if not is_linear or not isinstance(weight, torch.Tensor):
        return False
    return not (type(module) is nn.Linear and type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype in _DTYPES)


def _stored(name: str) -> dict[str, Any]:
    """The `quantization_config` of a model's config.json; empty without one."""
    try:
        found: Any = getattr(AutoConfig.from_pretrained(model_path(name)), "quantization_config", None)
    except Exception:  # loading the model says what is wrong with it
        return {}
    return dict(found) if isinstance(found, dict) else dict(found.to_dict()) if found is not None else {}


def _flag(options: ModelOptions) -> str | None:
    if options.load_in_4bit:
        return "--load_in_4bit"
    return "--load_in_8bit" if options.load_in_8bit else None


def _named(bits: str) -> str:
    return {"load_in_4bit": "4 bits", "load_in_8bit": "8 bits"}.get(bits, "")


def _check_installed(who_needs: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise SettingsError(f"{who_needs} bitsandbytes, which is not installed; run: pip install 'parallelmind[quant]'")
