"""Hashes by which a job or a training run notices that a file or folder it depends on was edited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["print_of_adapter", "print_of_content", "print_of_folder", "print_of_large_file", "print_of_tree"]


def print_of_folder(folder: Path) -> str:
    """Of a model folder, without the folders in it."""
    # Weights are too large to hash at every start; size and time tell an edited folder well enough.
    return _by_size_and_time((path.name, path) for path in sorted(folder.iterdir()) if path.is_file())


def print_of_tree(folder: Path) -> str:
    """Of a folder of data with all folders in it; what is hidden, such as `.git`, is no data."""
    files = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return _by_size_and_time(
        (name.as_posix(), path) for name, path in files if not any(part.startswith(".") for part in name.parts)
    )


def print_of_large_file(path: Path) -> str:
    """Of a file that is too large to be read beforehand: its size and time."""
    return _by_size_and_time([("", path)])


def print_of_content(path: Path) -> str:
    """Of every byte of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


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


def _by_size_and_time(files: Iterable[tuple[str, Path]]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name, path in files:
        hasher.update(f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return hasher.hexdigest()
