"""Memory for keys and values: that of the container, where it is less than the machine's."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest
import torch

from parallelmind.engine.memory import default_kv_cache_bytes, free_in_container


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(version: int, tmp_path: Path) -> None:
    cache = "anon 5\ninactive_file 30\nactive_file 20\nfile 77\n"
    if version == 2:
        write(tmp_path, memory__max="1000\n", memory__current="400\n", memory__stat=cache)
    else:
        files = {"memory__limit_in_bytes": "1000\n", "memory__usage_in_bytes": "400\n", "memory__stat": cache}
        write(tmp_path / "memory", **files)
    assert free_in_container(tmp_path) == 650
    assert default_kv_cache_bytes(torch.device("cpu"), group=tmp_path) == 325


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    assert free_in_container(tmp_path) == math.inf
    write(tmp_path, memory__max="max\n", memory__current="400\n", memory__stat="")
    assert free_in_container(tmp_path) == math.inf
    # Other programs take and free memory meanwhile.
    half = psutil.virtual_memory().available / 2
    assert default_kv_cache_bytes(torch.device("cpu"), group=tmp_path) == pytest.approx(half, rel=0.2)


def test_more_than_the_limit_is_no_negative_room(tmp_path: Path) -> None:
    write(tmp_path, memory__max="100\n", memory__current="400\n", memory__stat="inactive_file 1\n")
    assert free_in_container(tmp_path) == 0
