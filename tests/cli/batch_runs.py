"""What the tests of the batch command share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def arguments(data: Path, out: Path, *more: object, model: object = "m") -> list[str]:
    given = ["batch", "--base_model", model, "--data_path", data, "--out_path", out, "--workers", 0, *more]
    return [str(value) for value in given]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
