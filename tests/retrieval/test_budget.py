from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.errors import SettingsError
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer

BUDGET = TokenBudget(load_tokenizer("tiny"))
TEXT = "First sentence here. Second sentence there.\nA line.\n\nThe second paragraph is longer. It ends now.\n\nThird."


@settings(max_examples=120)
@given(text=st.text(max_size=300) | st.text(alphabet="ab. \n。数组😀", max_size=400), limit=st.integers(0, 150))
def test_a_cut_is_a_beginning_within_the_limit(text: str, limit: int) -> None:
    cut = BUDGET.cut(text, limit)
    assert text.startswith(cut.text)
    assert BUDGET.count(cut.text) <= limit
    assert cut.truncated == (cut.text != text or BUDGET.count(text) > limit)
    if cut.tokens is not None:
        assert cut.tokens == BUDGET.count(cut.text)


def test_what_fits_is_whole_and_a_bound_by_bytes_needs_no_count() -> None:
    assert BUDGET.cut("short", 100).tokens is None
    exact = BUDGET.count(TEXT)
    assert BUDGET.cut(TEXT, exact).text == TEXT
    assert BUDGET.cut(TEXT, exact).tokens == exact


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (64, "First sentence here. Second sentence there.\nA line.\n\nThe second paragraph is longer. It ends now."),
        (60, "First sentence here. Second sentence there.\nA line."),
        (28, "First sentence here. Second sentence there."),
        (12, "First sentence"),
    ],
)
def test_cuts_are_at_ends_of_paragraphs_sentences_lines_or_words(limit: int, kept: str) -> None:
    assert BUDGET.cut(TEXT, limit).text == kept


def test_a_text_without_any_boundary_is_cut_between_tokens() -> None:
    cut = BUDGET.cut("x" * 500, 50)
    assert cut.truncated
    assert 0 < len(cut.text) < 500
    assert cut.tokens is not None
    assert cut.tokens <= 50


def test_a_tokenizer_folder_and_one_that_is_missing(tmp_path: Path) -> None:
    tiny = load_tokenizer("tiny")
    tiny.save(str(tmp_path / "tokenizer.json"))
    assert TokenBudget(load_tokenizer(str(tmp_path))).count(TEXT) == BUDGET.count(TEXT)
    with pytest.raises(SettingsError, match="--tokenizer"):
        load_tokenizer(str(tmp_path / "nothing" / "here"))
