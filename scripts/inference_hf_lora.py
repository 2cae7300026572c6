"""Single inference: `--mode chat` is `parallelmind chat`, `--mode generate` is `parallelmind generate`.

Also the documented import path: `from scripts.inference_hf_lora import load_model_with_lora, generate_text`, and the
functions behind pos2d: `_prepare_pos2d`, `_set_prompt_pos2d` and `_inject_pos2d_hook`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from parallelmind.cli.main import main as run_command
from parallelmind.columnar import auto_pair_indices
from parallelmind.columnar import inject_pos2d_hook as _inject_pos2d_hook
from parallelmind.columnar import prepare_pos2d as _prepare_pos2d
from parallelmind.columnar import set_prompt_pos2d as _set_prompt_pos2d
from parallelmind.models.generation import generate_text
from parallelmind.models.loader import load_model_with_lora

__all__ = [
    "_inject_pos2d_hook",
    "_prepare_pos2d",
    "_set_prompt_pos2d",
    "auto_pair_indices",
    "generate_text",
    "load_model_with_lora",
    "main",
]


def main(argv: Sequence[str]) -> int:
    """Run the command that `--mode` names (chat by default) with the other flags."""
    mode, rest, words = "chat", [], iter(argv)
    for word in words:
        if word == "--mode":
            mode = next(words, "")
        elif word.startswith("--mode="):
            mode = word.partition("=")[2]
        else:
            rest.append(word)
    if mode not in ("chat", "generate"):
        print(f"error: --mode is {mode!r}; it must be chat or generate", file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(rest):
        print(f"--mode chat or generate (default: chat); the flags of --mode {mode}:\n")
    return run_command([mode, *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
