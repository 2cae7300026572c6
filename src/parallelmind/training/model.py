"""The model to train: loaded or new, with 2D RoPE, with LoRA or whole."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from parallelmind.errors import SettingsError, first_line
from parallelmind.models.loader import DTYPES, load_base_model, load_tokenizer, load_tokenizer_from, resolve_device
from parallelmind.models.lora import apply_lora, load_lora
from parallelmind.models.lora_layers import ADAPTER, lora_layers, unwrap
from parallelmind.models.lora_read import read_adapter
from parallelmind.models.quantization import is_quantized, is_to_be_quantized, quantization_name, settle
from parallelmind.models.rope_settings import ResolvedRope
from parallelmind.models.sidecar import RopeSettings, Sidecar
from parallelmind.models.whole_modules import compute_in, trained_whole, whole_state
from parallelmind.settings.model import ModelOptions
from parallelmind.training.options import TrainOptions
from parallelmind.training.quantized import check_gradients
from parallelmind.training.resolving import NEW_MODEL, new_model_values, resolve_rank, rope_of_run


@dataclass(kw_only=True)
class Trainee:
    """A model ready to be trained, and what was settled about it."""

    model: Any
    tokenizer: Any
    rope: ResolvedRope
    rank: int

    @property
    def settings(self) -> RopeSettings:
        return self.rope.settings

    @property
    def patched(self) -> bool:
        return self.rope.patched

    def sidecar(self, base_model: str) -> Sidecar:
        return Sidecar(
            rope=self.rope.rope,
            rank=self.rank,
            base_model=base_model,
            quantization=quantization_name(unwrap(self.model)),
        )

    def train_on_numbers(self, branch_range: int | None) -> None:
        """Note which branch numbers are trained: what inference is to use."""
        self.rope = replace(self.rope, settings=replace(self.rope.settings, branch_range=branch_range))

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def pad_token_id(self) -> int:
        """What fills up rows, unseen: a token that the model embeds, as not every tokenizer's pad token is."""
        own, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(own if own is not None and own < self.vocab_size else end)

    @property
    def max_model_len(self) -> int:
        """Positions of the model; 0: unknown."""
        return int(getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", 0) or 0)


def training_device(options: TrainOptions) -> tuple[str, str | None]:
    """The device of this process, and a note. Raises SettingsError if it cannot train in the dtype asked for."""
    device, note = resolve_device(options.device)
    if torch.device(device).type == "cuda":
        if torch.device(device).index:
            raise SettingsError(
                f"--device {options.device}: Trainer takes the first GPU that it sees; set CUDA_VISIBLE_DEVICES to the "
                "one wanted, and give --device cuda."
            )
        if "LOCAL_RANK" in os.environ:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            resolve_device(device)
    if options.dtype not in DTYPES:
        raise SettingsError(f"--dtype is {options.dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if options.dtype == "float16" and not device.startswith("cuda"):
        raise SettingsError("--dtype float16 cannot be trained in on a CPU; use --dtype bfloat16 or float32.")
    if options.dtype == "bfloat16" and device.startswith("cuda"):
        with torch.cuda.device(device):
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if not supported:
            raise SettingsError("--dtype bfloat16 is not supported by this GPU; use --dtype float16 or float32.")
    return device, note


def load_trainee(options: TrainOptions, *, device: str) -> Trainee:
    """Load or make the model that the options describe, in train mode, on the CPU or (quantized) on the device.

    Raises:
        SettingsError: the model or tokenizer is not found, or flags contradict the adapter to continue from.
        AdapterError: the adapter to continue from does not fit.
        UnsupportedModelError: 2D RoPE cannot be applied to the model.
    """
    rope = rope_of_run(options)
    tokenizer = _tokenizer(options)
    model: Any = _new_model(options, tokenizer) if options.base_model is None else _base_model(options, device)
    end = tokenizer.eos_token_id
    if end is None or end >= model.get_input_embeddings().weight.shape[0]:
        raise SettingsError(
            f"{options.tokenizer_path or options.base_model}: its tokenizer has no end-of-text token (eos_token) "
            "that the model knows, so answers would never learn to end; set one in its tokenizer_config.json."
        )
    rope.apply_to(model)
    rank = 1 if options.task == "pretrain" else _put_lora(model, options)
    # Steps of a small learning rate vanish in the rounding of 16-bit weights.
    dtype = model.dtype
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    if trained_whole(model):
        compute_in(model, dtype)
    if options.load_lora is not None:
        _restore_precision(model, options.load_lora)
    model.train()
    if is_quantized(model):
        check_gradients(model, DTYPES[options.dtype], _quantized_by(options))
    return Trainee(model=model, tokenizer=tokenizer, rope=rope, rank=rank)


def _put_lora(model: Any, options: TrainOptions) -> int:
    """Wrap the linear layers; returns the rank."""
    if options.load_lora is None:
        rank = resolve_rank(options)
        apply_lora(
            model,
            rank,
            alpha=options.lora_alpha,
            dropout=options.lora_dropout,
            target_modules=_targets(options.target_modules),
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            modules_to_save=options.modules_to_save,
            seed=options.seed,
        )
        return rank
    load_lora(model, options.load_lora, rank=options.lora_rank, dropout=options.lora_dropout)
    return resolve_rank(options)


def _targets(given: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """One name with signs of a pattern is a regular expression for whole paths."""
    if not given or given == ("all-linear",):
        return None
    return given[0] if len(given) == 1 and any(sign in given[0] for sign in "*+[(|\\^$") else given


def _restore_precision(model: Any, path: str) -> None:
    """Take the adapter's own values again: loading rounded them to the dtype of the layers."""
    adapter = read_adapter(path)
    stored = adapter.layers
    with torch.no_grad():
        for module, parameters in whole_state(model).items():
            kept = next(part for key, part in adapter.whole.items() if key == module or key.endswith(f".{module}"))
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
        for name, layer in lora_layers(model).items():
            values = next(part for key, part in stored.items() if key == name or key.endswith(f".{name}"))
            layer.lora_A[ADAPTER].weight.copy_(values.A)
            layer.lora_B[ADAPTER].weight.copy_(values.B)
            if values.magnitude is not None:
                layer.lora_magnitude_vector[ADAPTER].weight.copy_(values.magnitude)


def _tokenizer(options: TrainOptions) -> Any:
    if options.tokenizer_path is not None:
        return load_tokenizer_from(options.tokenizer_path, flag="--tokenizer_path")
    return load_tokenizer(ModelOptions.of(options, branch_range=None))


def _base_model(options: TrainOptions, device: str) -> nn.Module:
    loading = ModelOptions.of(options, branch_range=None)  # what is to be trained, not what the model knows
    if is_to_be_quantized(loading):
        if options.task == "pretrain":
            raise SettingsError(
                f"--task pretrain: {options.base_model} is stored quantized, and such weights are not trained; take "
                "the model that it was made of, or --task lora."
            )
    else:
        device = "cpu"
    # A model trained whole keeps its weights in float32; the forward computes in the dtype asked for.
    dtype = "float32" if options.task == "pretrain" else options.dtype
    model: nn.Module = load_base_model(replace(loading, device=device, dtype=dtype))
    if is_quantized(model):
        settle(model, trained=True)
        model._hf_peft_config_loaded = True  # type: ignore[assignment]  # else Trainer refuses a quantized model
    return model


def _quantized_by(options: TrainOptions) -> str:
    """The flag that says so; a model may also be stored so."""
    if options.load_in_4bit or options.load_in_8bit:
        return "--load_in_4bit" if options.load_in_4bit else "--load_in_8bit"
    return f"--base_model {options.base_model}"


def _new_model(options: TrainOptions, tokenizer: Any) -> nn.Module:
    """A model from scratch."""
    values = new_model_values(options)
    values.setdefault("vocab_size", len(tokenizer))
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    family = values.pop("model_type", NEW_MODEL["model_type"])
    try:
        config = AutoConfig.for_model(family, **(values | special))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(options.seed)
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # a config of impossible sizes fails in as many ways as there are models
        raise SettingsError(
            f"no {family} model can be made of --model_config and the flags of the new model: {first_line(error)}."
        ) from error
    return model
