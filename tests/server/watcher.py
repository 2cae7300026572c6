"""Looks at a server from a process of its own, so that nothing but the server makes it wait.

`python -m tests.server.watcher PORT PID SECONDS` prints how long each answer of /health took, which were wrong, and the
most memory that the process had.
"""

from __future__ import annotations

import json
import socket
import sys
import time

import psutil

ADDRESS = "127.0.0.3"
_ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def _health(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=120, source_address=(ADDRESS, 0)) as client:
        client.sendall(_ASK)
        return b"".join(iter(lambda: client.recv(65536), b""))


def watch(port: int, pid: int, seconds: float) -> dict[str, object]:
    """What /health does for a while."""
    process, end = psutil.Process(pid), time.monotonic() + seconds
    times, wrong, peak = [], [], 0
    while time.monotonic() < end:
        begun = time.monotonic()
        answer = _health(port)
        times.append(time.monotonic() - begun)
        if b" 200 OK" not in answer:
            wrong.append(repr(answer[:300]))
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.02)
    return {"times": times, "wrong": wrong, "peak": peak}


if __name__ == "__main__":
    print(json.dumps(watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
