"""Hashes by which a job or a training run notices that a file or folder it depends on was edited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


def fingerprint_of_folder(folder: Path) -> str:
    """The fingerprint of a model folder, without its subfolders."""
    # Weights are too large to hash at every start; size and time tell an edited folder well enough.
    return _by_size_and_time((path.name, path) for path in sorted(folder.iterdir()) if path.is_file())


def fingerprint_of_tree(folder: Path) -> str:
    """The fingerprint of every byte of a data folder with its subfolders; hidden ones such as `.git` do not count."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            hasher.update(f"{name.as_posix()} {fingerprint_of_content(path)}\n".encode())
    return hasher.hexdigest()


def fingerprint_of_content(path: Path) -> str:
    """The fingerprint of every byte of a file; a file that did not change meanwhile is read once."""
    found = path.stat()
    return _content(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=10_000)
def _content(path: Path, *state: int) -> str:
    del state
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def fingerprint_of_contents(files: Iterable[Path]) -> str:
    """The fingerprint of the names and every byte of several files."""
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
