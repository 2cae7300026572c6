"""A small model from scratch on parallel data; the same as `parallelmind train --task pretrain`."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
import run_from_checkout

run_from_checkout.prepare(__name__)

from parallelmind.columnar import auto_pair_indices

__all__ = ["auto_pair_indices"]

if __name__ == "__main__":
    run_from_checkout.command("train", "--task", "pretrain")
