"""Single inference: `--mode chat` is `parallelmind chat`, `--mode generate` is `parallelmind generate`.

Also the documented import path: `from scripts.inference_hf_lora import load_model_with_lora, generate_text`, and the
functions behind pos2d: `_prepare_pos2d`, `_set_prompt_pos2d` and `_inject_pos2d_hook`.
"""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
import run_from_checkout

run_from_checkout.prepare(__name__)

from parallelmind.cli.single_script import main
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

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
