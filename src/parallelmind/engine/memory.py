"""How much memory keys and values may take."""

from __future__ import annotations

import math
import re
from pathlib import Path

import psutil
import torch

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and its parts, in the second and the first version of control groups."""


def default_kv_cache_bytes(device: torch.device, *, group: Path = _CONTROL_GROUP) -> int:
    """Half of the memory that is free now on the device that holds the embeddings.

    Args:
        group: the folder in which the system tells the limits of this container.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch holds for reuse is free for this process, though not for others.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (int(free) + kept) // 2
    return int(min(psutil.virtual_memory().available, free_in_container(group))) // 2


def free_in_container(group: Path = _CONTROL_GROUP) -> float:
    """Bytes that the limit of this container leaves, page cache counted as free; infinity without a limit.

    The system reports what is available on the whole machine, and kills a container that exceeds its own limit.
    """
    found = math.inf
    for limit, used, parts in _LIMITS:
        try:
            room = int((group / limit).read_text()) - int((group / used).read_text())
            cache = re.findall(r"^(?:in)?active_file (\d+)$", (group / parts).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        found = min(found, max(0, room + sum(map(int, cache))))
    return found
