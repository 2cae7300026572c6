"""A base model on disk."""

from __future__ import annotations

import pytest

from tests.families import char_tokenizer, tiny_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small model; nobody writes there."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("qwen2").save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return str(folder)
