"""The argument parser of all commands, and the flags that several of them share."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from parallelmind.cli.failures import say_failed
from parallelmind.settings.model import ModelOptions

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """Takes underscores and hyphens in flags; an error is one line, and suggests the flag that was meant."""

    more_flags: Callable[[Parser], None] | None = None
    """Adds flags that take a heavy import to know; called when a flag is given that is not among the others."""
    meant: Mapping[str, str] = {}
    """Flags of other commands, and what they are here."""

    def __init__(self, *args: object, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        raw = sys.argv[1:] if args is None else list(args)
        self._learn_more_flags(raw)
        given = [self._spelled(arg) for arg in raw]
        if self._subparsers:
            return super().parse_known_args(given, namespace)
        # Before argparse looks, which would name a required flag as missing rather than the misspelled one.
        self._refuse_unknown(arg for arg in given if arg.startswith("--") and arg != "--" and " " not in arg)
        known, rest = super().parse_known_args(given, namespace)
        self._refuse_unknown(arg for arg in rest if arg.startswith("-"))
        return known, rest

    def error(self, message: str) -> NoReturn:
        say_failed(f"error: {message} (see {self.prog} --help)")
        self.exit(USAGE_ERROR)

    def _learn_more_flags(self, args: Iterable[str]) -> None:
        names = (self._spelled(arg).partition("=")[0] for arg in args if arg.startswith("--"))
        if self.more_flags is not None and any(name not in self._option_string_actions for name in names):
            learn, self.more_flags = self.more_flags, None
            learn(self)

    def _refuse_unknown(self, flags: Iterable[str]) -> None:
        for flag in flags:
            if flag.partition("=")[0] not in self._option_string_actions:
                self.error(f"unknown flag {flag.partition('=')[0]}{self._suggestion(flag)}")

    def _spelled(self, arg: str) -> str:
        if not arg.startswith("--"):
            return arg
        name, equals, value = arg.partition("=")
        spelled = "--" + name[2:].replace("-", "_")
        return spelled + equals + value if spelled in self._option_string_actions else arg

    def _suggestion(self, unknown: str) -> str:
        name = "--" + unknown.partition("=")[0].lstrip("-").replace("-", "_").lower()
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        if name in self.meant:
            close = [self.meant[name]]
        return f"; did you mean {close[0]}?" if close else ""


def documented_default(text: str, value: object) -> str:
    """Help of a flag whose default is filled in later, from the adapter or the machine."""
    return f"{text} (default: {value})"


def add_model_flags(
    parser: argparse.ArgumentParser,
    *,
    adapter_required: bool = False,
    several_adapters: bool = False,
    dtype: str | None = "bfloat16",
) -> None:
    """The flags that choose and load a model; no `dtype` is the base model's own."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--base_model", required=True, metavar="MODEL", help="Hub name, local folder, or tiny: the bundled model"
    )
    kind = "adapter: a .pth file or a PEFT folder"
    if several_adapters:
        choice = (
            "requests choose it by NAME; may be given several times. A PATH without a NAME is part of the model for "
            "all requests"
        )
        group.add_argument(
            "--lora_path", action="append", metavar="NAME=PATH", help=documented_default(f"{kind}; {choice}", "none")
        )
    else:
        group.add_argument(
            "--lora_path",
            required=adapter_required,
            metavar="PATH",
            help=kind + ("" if adapter_required else " (default: none)"),
        )
    group.add_argument(
        "--lora_rank",
        type=int,
        metavar="N",
        help=documented_default("the rank that the adapter must have, as a check", "the adapter's own"),
    )
    rope = group.add_mutually_exclusive_group()
    rope.add_argument(
        "--patch_rope",
        action="store_true",
        default=None,
        help="turn 2D RoPE on (default: on with an adapter)",
    )
    rope.add_argument("--no_patch_rope", action="store_false", dest="patch_rope", default=None, help="turn 2D RoPE off")
    adapter = "the adapter's, else "
    group.add_argument(
        "--rope_2d_ratio",
        type=float,
        metavar="R",
        help=documented_default("share of frequency pairs that encode the branch", adapter + "0.5"),
    )
    group.add_argument(
        "--rope_2d_mode",
        choices=["split", "additive"],
        help=documented_default("how those pairs turn: by the branch alone, or by time + branch", adapter + "split"),
    )
    group.add_argument(
        "--rope_2d_pairs",
        choices=["low", "interleaved"],
        help=documented_default("which pairs: the slowest, or spread evenly", adapter + "low"),
    )
    group.add_argument(
        "--branch_stride",
        type=int,
        metavar="N",
        help=documented_default("branch position = branch id x stride", adapter + "128"),
    )
    group.add_argument(
        "--visibility",
        choices=["isolated", "columnar", "strict"],
        help=documented_default(
            "what a branch sees: main and itself; also what the other branches wrote before; only itself",
            adapter + "isolated",
        ),
    )
    group.add_argument("--device", help=documented_default("such as cuda, cuda:1, cpu", "cuda, or cpu without a GPU"))
    group.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default=dtype,
        help=documented_default("number format of the weights", dtype or "the base model's own"),
    )
    if not adapter_required:
        group.add_argument("--load_in_8bit", action="store_true", help="8-bit weights (bitsandbytes)")
        group.add_argument("--load_in_4bit", action="store_true", help="4-bit weights (bitsandbytes)")
        group.add_argument(
            "--device_map", metavar="MAP", help='"auto" spreads the model over all GPUs (default: one device)'
        )


def model_options(args: argparse.Namespace) -> ModelOptions:
    """What the flags of `add_model_flags` say, but for the adapter."""
    return ModelOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ModelOptions)})


def add_sampling_flags(
    parser: argparse.ArgumentParser, *, top_k: int, repetition_penalty: float, seed: int | None = 0
) -> None:
    """The flags that choose the next token; with seed None every run differs."""
    group = parser.add_argument_group("sampling")

    def add(name: str, kind: Callable[[str], object], default: object, text: str) -> None:
        group.add_argument(
            name,
            type=kind,
            default=default,
            metavar="N" if kind is int else "X",
            help=documented_default(text, default),
        )

    add("--max_new_tokens", int, 512, "at most this many tokens in an answer")
    add("--temperature", float, 0.7, "how freely tokens are drawn; 0 always takes the likeliest one")
    add("--top_p", float, 0.9, "draw from the likeliest tokens that together reach this probability; 1 is all")
    add("--top_k", int, top_k, "draw from this many of the likeliest tokens; 0 is all")
    add("--min_p", float, 0.0, "leave out tokens less likely than this share of the likeliest one; 0 leaves out none")
    add("--repetition_penalty", float, repetition_penalty, "above 1 discourages repetition")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be given several times",
    )
    group.add_argument("--ignore_eos", action="store_true", help="continue after the end-of-text token")
    text = documented_default("same seed, same answers", "every run differs" if seed is None else seed)
    group.add_argument("--seed", type=int, default=seed, metavar="N", help=text)


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse, or exit with code 2 after one line that says what is wrong."""
    known, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(f"unexpected argument {rest[0]!r}")
    return known
