"""Signatures and notes that are written as text."""

from __future__ import annotations

import pytest

from parallelmind.retrieval.deprecation import is_of_a_part, named_replacement
from parallelmind.retrieval.signatures import return_annotation


def test_return_annotations() -> None:
    assert return_annotation("(a) -> box.Crate") == "box.Crate"
    assert return_annotation("(a) -> 'Crate'") == "Crate"
    assert return_annotation("(a) -> list[int]") == "list[int]"
    assert return_annotation("(a=<object object>) -> box.Crate") == "box.Crate"
    assert return_annotation("(f=<function <lambda> at 0x1>, g=<box.Nothing>) -> Crate") == "Crate"
    for signature in ("(a)", "", "a", "([start,] stop)", "(a) -> ", "(x): pass\nimport os\ndef g()", "(" * 5_000):
        assert return_annotation(signature) == ""


@pytest.mark.parametrize(
    ("note", "instead"),
    [
        ("Deprecated since 1.2: Use :func:`~box.glue` instead, it holds.", "box.glue"),
        ("Deprecated: use `glue()`.", "glue"),
        ("DEPRECATED since 2.0", ""),
        ("Deprecated since 3.1: Renamed to ``other``.", "other"),
        ("since: 3.8; alternative: boxes.glue", "boxes.glue"),
        ("", ""),
    ],
)
def test_what_a_note_says_to_use(note: str, instead: str) -> None:
    assert named_replacement(note) == instead
    assert not is_of_a_part(note)


@pytest.mark.parametrize(
    "note",
    [
        "Deprecated since 19.2.0 *cmp*, use *eq*.",
        "Deprecated since 1.0: The ``x`` parameter is ignored.",
        "Passing a list is deprecated.",
        "Deprecated arguments are told. Use others.",
    ],
)
def test_notes_on_a_part(note: str) -> None:
    assert is_of_a_part(note)
