"""docs/models.md: what it says of every model type of transformers is what comes out here."""

from __future__ import annotations

import dataclasses

import pytest
import transformers

from tests.cases import few
from tests.models import document
from tests.models.judge import CRASHED, WRONG, judge
from tests.models.registry import TYPES, variants
from tests.models.walk import walk

SAMPLE = [
    ("llama", "plain"),
    ("gpt_oss", "window"),
    ("llama4_text", "chunks"),
    ("llama", "rope dynamic"),
    ("mistral", "window, 2D RoPE"),
    ("bert", "plain"),
    ("mpt", "bfloat16"),
    ("deepseek_v3", "plain"),
    ("gemma3_text", "window"),
    ("phimoe", "window"),
    ("qwen2_moe", "window in half of the layers"),
    ("gpt_neo", "window"),
    ("doge", "window"),
    ("llama", "rope longrope"),
    ("granitemoehybrid", "attention only"),
    ("ministral3", "2D RoPE"),
    ("axk2", "plain"),
]


def known() -> dict[tuple[str, str], str]:
    return {(row.model_type, row.variant): row.outcome for row in document.rows()}


def test_the_page_is_up_to_date() -> None:
    assert document.DOCUMENT.read_text(encoding="utf-8") == document.render(), "run python -m tests.models.document"


def test_no_type_is_wrong_or_crashes() -> None:
    assert [row for row in document.rows() if row.outcome in (WRONG, CRASHED)] == []


def test_every_type_has_a_row() -> None:
    assert document.version() == transformers.__version__, "run python -m tests.models.document"
    assert {row.model_type for row in document.rows()} == set(TYPES)


@pytest.mark.half_precision
@pytest.mark.parametrize(("model_type", "name"), few(SAMPLE, 7))
def test_a_sample_comes_out_as_the_page_says(model_type: str, name: str) -> None:
    """With a part of the texts, as a whole family takes seconds."""
    [variant] = [one for one in variants(model_type) if one.name == name]
    verdict = judge(model_type, dataclasses.replace(variant, is_thorough=False))
    assert verdict.outcome == known()[model_type, name], verdict


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_variant_comes_out_as_the_page_says(model_type: str) -> None:
    expected = {name: outcome for (kind, name), outcome in known().items() if kind == model_type}
    found = {row.variant: row.outcome for row in walk([model_type])}
    assert found == expected
