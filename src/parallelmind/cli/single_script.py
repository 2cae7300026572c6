"""`scripts/inference_hf_lora.py`: `chat` and `generate` as the two modes of one program."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parallelmind.cli import chat, generate
from parallelmind.cli.args import Parser
from parallelmind.cli.main import main as run_command
from parallelmind.cli.single import add_single_arguments

_MODES = ("chat", "generate")
_SCRIPT = "python scripts/inference_hf_lora.py"
_EPILOG = f"""\
Examples:
  {_SCRIPT} --base_model Qwen/Qwen2.5-0.5B-Instruct --mode chat
  {_SCRIPT} --base_model tiny --mode generate --temperature 0 --prompt "Story: Emma likes blue. What does Emma like?"
"""


def main(argv: Sequence[str]) -> int:
    """Run the command that `--mode` names (chat by default) with the other flags."""
    mode, rest, words = None, [], iter(argv)
    for word in words:
        if word == "--mode":
            mode = next(words, "")
        elif word.startswith("--mode="):
            mode = word.partition("=")[2]
        else:
            rest.append(word)
    if mode not in (None, *_MODES):
        print(f"error: --mode is {mode!r}; it must be chat or generate", file=sys.stderr)
        return 2
    if mode is None and {"-h", "--help"} & set(rest):
        print(_help(), end="")
        return 0
    if mode is None and any(word.partition("=")[0] == "--prompt" for word in rest):
        print(f"error: --prompt is for --mode generate; add it (see {_SCRIPT} --help)", file=sys.stderr)
        return 2
    return run_command([mode or "chat", *rest])


def _help() -> str:
    """The flags of both modes, those that they share once."""
    parser = Parser(
        prog=_SCRIPT,
        usage=f"{_SCRIPT} --base_model MODEL [--mode chat | --mode generate --prompt TEXT] [FLAGS]",
        description="Talk with a model, or print the completion of a prompt.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--mode", choices=_MODES, help="chat: a conversation; generate: the completion of --prompt (default: chat)"
    )
    add_single_arguments(parser)
    generate.add_generate_flags(parser.add_argument_group("with --mode generate"))
    chat.add_chat_flags(parser.add_argument_group("with --mode chat"))
    return parser.format_help()
