"""A small model and an engine with it."""

from __future__ import annotations

from typing import Any

import pytest

from parallelmind import Engine
from tests.families import char_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen2")


@pytest.fixture
def engine(model: Any) -> Engine:
    return Engine(model, char_tokenizer())
