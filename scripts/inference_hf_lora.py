"""Single inference: `--mode chat` is `parallelmind chat`, `--mode generate` is `parallelmind generate`.

Also the documented import path: `from scripts.inference_hf_lora import load_model_with_lora, generate_text`.
"""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
import run_from_checkout

run_from_checkout.prepare(__name__)

from parallelmind.cli.single_script import main
from parallelmind.columnar import auto_pair_indices
from parallelmind.models.generation import generate_text
from parallelmind.models.loader import load_model_with_lora

__all__ = ["auto_pair_indices", "generate_text", "load_model_with_lora", "main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
