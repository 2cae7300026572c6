"""Answer questions over contexts with many workers; the same as `parallelmind answer`, alone or under torchrun.

Also the documented import path: `from multi_worker_inference import QueryBasedInference`.
"""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))))
import run_from_checkout

run_from_checkout.prepare(__name__)

from parallelmind import QueryBasedInference

__all__ = ["QueryBasedInference"]

if __name__ == "__main__":
    run_from_checkout.command("answer")
