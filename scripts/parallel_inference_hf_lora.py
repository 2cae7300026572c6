"""Batch parallel inference; the same as `parallelmind batch`."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
import run_from_checkout

run_from_checkout.prepare(__name__)

if __name__ == "__main__":
    run_from_checkout.command("batch")
