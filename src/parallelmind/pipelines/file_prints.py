"""Hashes by which a job notices that its model or adapter was edited."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["print_of_adapter", "print_of_folder"]


def print_of_folder(folder: Path) -> str:
    """Of a model folder."""
    # Weights are too large to hash at every start; size and time tell an edited folder well enough.
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            hasher.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return hasher.hexdigest()


def print_of_adapter(path: Path) -> str:
    """Of a `.pth` file with its sidecar, or of a PEFT folder."""
    from parallelmind.models.sidecar import sidecar_path

    if path.is_dir():
        weights = (".safetensors", ".bin", ".pth", ".json")
        files = [file for file in sorted(path.iterdir()) if file.suffix in weights]
    else:
        files = [file for file in (path, sidecar_path(path)) if file.exists()]
    hasher = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            hasher.update(f"{file.name} ".encode() + hashlib.file_digest(opened, "sha256").digest())
    return hasher.hexdigest()
