"""Check the division of work over workers; the same as `parallelmind check-workers`."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))))
import run_from_checkout

run_from_checkout.prepare(__name__)

if __name__ == "__main__":
    run_from_checkout.command("check-workers")
