"""ParallelMind: parallel branches for any Hugging Face causal language model.

from parallelmind import Branch, Engine, Request, SamplingParams
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallelmind.engine.engine import Engine
    from parallelmind.engine.request import Branch, BranchResult, Event, Request, RequestResult
    from parallelmind.models.cpu import optimize_for_cpu
    from parallelmind.models.loader import load_model_with_lora
    from parallelmind.settings.sampling import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "Branch",
    "BranchResult",
    "Engine",
    "Event",
    "Request",
    "RequestResult",
    "SamplingParams",
    "__version__",
    "load_model_with_lora",
    "optimize_for_cpu",
]

_MODULES = {
    "Engine": "parallelmind.engine.engine",
    "load_model_with_lora": "parallelmind.models.loader",
    "optimize_for_cpu": "parallelmind.models.cpu",
    **dict.fromkeys(
        ("Branch", "BranchResult", "Event", "Request", "RequestResult", "SamplingParams"),
        "parallelmind.engine.request",
    ),
}


def __getattr__(name: str) -> Any:
    # On first use: `parallelmind --help` must not wait for torch and transformers.
    if name not in _MODULES:
        raise AttributeError(f"module 'parallelmind' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
