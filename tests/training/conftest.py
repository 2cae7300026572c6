"""A small model in a folder, and records to train it on; one of each for the tests of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import save_model, write_records


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl")
