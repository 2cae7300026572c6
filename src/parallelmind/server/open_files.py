"""How many connections the system lets a process have."""

from __future__ import annotations

import logging

_LOGGER = logging.getLogger(__name__)
_OTHERS = 128
"""Files that are open besides connections."""


def room_for(connections: int, accepted: int) -> int:
    """So many connections, or as many as the system's limit on open files allows, which is raised as far as it can be.

    Args:
        accepted: connections that may come at once before one of them is counted.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    needed = connections + accepted + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    room = max(1, soft - accepted - _OTHERS)
    _LOGGER.warning(
        "--max_connections %d: the system lets this process open %d files, so %d connections are taken; raise that "
        "limit (ulimit -n)",
        connections,
        soft,
        room,
    )
    return room
