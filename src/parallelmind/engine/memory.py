"""How much memory keys and values may take by default."""

from __future__ import annotations

import psutil
import torch


def default_kv_cache_bytes(device: torch.device) -> int:
    """Half of the memory that is free now on the device that holds the embeddings."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return int(free) // 2
