"""Memory for keys and values: that of the container, where it is less than the machine's."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest
import torch

from parallelmind.engine import memory
from parallelmind.engine.memory import default_kv_cache_bytes, free_in_container


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = "anon 5\ninactive_file 30\nactive_file 20\nfile 77\n"
    if version == 2:
        write(tmp_path, memory__max="1000\n", memory__current="400\n", memory__stat=cache)
    else:
        files = {"memory__limit_in_bytes": "1000\n", "memory__usage_in_bytes": "400\n", "memory__stat": cache}
        write(tmp_path / "memory", **files)
    assert free_in_container(tmp_path) == 650
    monkeypatch.setattr(memory, "free_in_container", lambda: free_in_container(tmp_path))
    assert default_kv_cache_bytes(torch.device("cpu")) == 325


def test_without_a_limit_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_in_container(tmp_path) == math.inf
    write(tmp_path, memory__max="max\n", memory__current="400\n", memory__stat="")
    assert free_in_container(tmp_path) == math.inf
    monkeypatch.setattr(memory, "free_in_container", lambda: math.inf)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 500}))
    assert default_kv_cache_bytes(torch.device("cpu")) == 250


def test_more_than_the_limit_is_no_negative_room(tmp_path: Path) -> None:
    write(tmp_path, memory__max="100\n", memory__current="400\n", memory__stat="inactive_file 1\n")
    assert free_in_container(tmp_path) == 0
