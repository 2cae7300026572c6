"""What `chat` and `generate` share: flags, loading, sampling."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from parallelmind.cli.args import add_model_flags, add_sampling_flags, documented_default
from parallelmind.engine.presets import PRESETS, Preset

if TYPE_CHECKING:
    from parallelmind.engine.engine import Engine
    from parallelmind.engine.request import SamplingParams

__all__ = ["add_single_arguments", "load_engine", "sampling_params"]

_LOGGER = logging.getLogger(__name__)
_SAMPLING_DEFAULTS: Preset = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}


def add_single_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a model that answers one prompt at a time."""
    add_model_flags(parser)
    loading = parser.add_argument_group("loading")
    loading.add_argument("--load_in_8bit", action="store_true", help="8-bit weights (bitsandbytes)")
    loading.add_argument("--load_in_4bit", action="store_true", help="4-bit weights (bitsandbytes)")
    loading.add_argument(
        "--device_map", metavar="MAP", help='"auto" spreads the model over all GPUs (default: one device)'
    )
    add_sampling_flags(parser, top_k=50, repetition_penalty=1.1, seed=None)
    parser.set_defaults(**dict.fromkeys(_SAMPLING_DEFAULTS))
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help=documented_default("sampling for a usual situation; single flags override it", "none"),
    )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """A flag that was given, else the preset's value, else the documented default."""
    from parallelmind.engine.request import SamplingParams

    settings: dict[str, Any] = dict(PRESETS[args.preset] if args.preset else _SAMPLING_DEFAULTS)
    settings |= {name: getattr(args, name) for name in _SAMPLING_DEFAULTS if getattr(args, name) is not None}
    return SamplingParams(
        max_new_tokens=args.max_new_tokens,
        min_p=args.min_p,
        stop=tuple(args.stop),
        seed=args.seed,
        ignore_eos=args.ignore_eos,
        **settings,
    )


def load_engine(args: argparse.Namespace) -> Engine:
    """Load the model and log what is worth knowing."""
    from parallelmind.engine.engine import Engine
    from parallelmind.models.cpu import optimize_for_cpu
    from parallelmind.models.loader import load_model_with_lora

    loaded = load_model_with_lora(
        base_model=args.base_model,
        lora_path=args.lora_path,
        lora_rank=args.lora_rank,
        rope_2d_ratio=args.rope_2d_ratio,
        patch_rope=args.patch_rope,
        device=args.device,
        dtype=args.dtype,
        rope_2d_mode=args.rope_2d_mode,
        rope_2d_pairs=args.rope_2d_pairs,
        branch_stride=args.branch_stride,
        visibility=args.visibility,
        device_map=args.device_map,
        load_in_8bit=args.load_in_8bit,
        load_in_4bit=args.load_in_4bit,
    )
    model, tokenizer, _ = loaded
    for note in (*loaded.notes, *optimize_for_cpu(model)):
        _LOGGER.info("%s", note)
    settings = loaded.settings
    return Engine(model, tokenizer, visibility=settings.visibility, branch_stride=settings.branch_stride)
