"""What `chat` and `generate` share: flags, loading, sampling."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallelmind.cli.args import add_model_flags, add_sampling_flags, documented_default, model_options
from parallelmind.engine.presets import PRESETS, Preset

if TYPE_CHECKING:
    from parallelmind.engine.engine import Engine
    from parallelmind.engine.request import SamplingParams


_SAMPLING_DEFAULTS: Preset = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}


def add_single_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a model that answers one prompt at a time."""
    add_model_flags(parser)
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


def load_single(args: argparse.Namespace) -> Engine:
    """Load the model and make its engine."""
    from parallelmind.engine.engine import Engine

    return Engine.from_pretrained(lora_path=args.lora_path, **model_options(args).loading())
