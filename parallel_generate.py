"""Branches under one shared text, decoded in parallel; the same as `parallelmind generate`.

    python parallel_generate.py --base_model tiny --prompt_file story.txt --branch "How old is Dan?" --branch "…"

The prompt is main, branch 0; every `--branch` has a branch position of its own, and every forward is given pos2d.
"""

import run_from_checkout

run_from_checkout.prepare(__name__)

if __name__ == "__main__":
    run_from_checkout.command("generate")
