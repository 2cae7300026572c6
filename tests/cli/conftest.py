"""Fixtures of the batch command's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_engine import FakeEngine, loaded_instead


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    records = [{"main": f"main {n}", "branches": [f"b{n}.{k}" for k in range(5)]} for n in range(12)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    loaded_instead(request, monkeypatch, lambda settings: fake)
    return fake
