"""Whether ParallelMind runs from a checkout of its repository, which has more than what is installed from a wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import parallelmind
from parallelmind.doctor.check import NotApplicableError


def find_checkout() -> Path | None:
    """The root of the repository, or None when the package was installed without it."""
    root = Path(parallelmind.__file__).resolve().parents[2]
    return root if (root / "src" / "parallelmind").is_dir() and (root / "pyproject.toml").is_file() else None


def checkout_root() -> Path:
    """The root of the repository. Raises NotApplicableError when there is none."""
    root = find_checkout()
    if root is None:
        raise NotApplicableError("installed as a package: this is part of a checkout only")
    return root


def checkout_project() -> dict[str, Any]:
    """The project table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((checkout_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table
