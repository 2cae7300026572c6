"""Records and training data. What is exported here is for a training loop of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallelmind.data.batches import BatchLimits
    from parallelmind.data.collator import ParallelPretrainCollator
    from parallelmind.data.dataset import ParallelPretrainDataset
    from parallelmind.data.encoder import SampleEncoder
    from parallelmind.data.rows import RowLimits
    from parallelmind.data.sources import JsonlSource

__all__ = [
    "BatchLimits",
    "JsonlSource",
    "ParallelPretrainCollator",
    "ParallelPretrainDataset",
    "RowLimits",
    "SampleEncoder",
]

_MODULES = {
    "BatchLimits": "parallelmind.data.dataset",
    "JsonlSource": "parallelmind.data.sources",
    "ParallelPretrainCollator": "parallelmind.data.collator",
    "ParallelPretrainDataset": "parallelmind.data.dataset",
    "RowLimits": "parallelmind.data.rows",
    "SampleEncoder": "parallelmind.data.encoder",
}


def __getattr__(name: str) -> Any:
    # On first use: reading a file of records must not wait for torch.
    if name not in _MODULES:
        raise AttributeError(f"module 'parallelmind.data' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
