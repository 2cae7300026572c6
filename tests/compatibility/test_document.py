"""docs/compatibility.md is what the promises and their tests say, and nothing is promised without a proof."""

from __future__ import annotations

from tests.compatibility.contract import SECTIONS
from tests.compatibility.document import DOCUMENT, proofs, render


def test_every_promise_is_proved() -> None:
    shown = proofs()
    unproved = [
        (key, name) for key, section in SECTIONS.items() for name in section.names() if (key, name) not in shown
    ]
    assert not unproved


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run python -m tests.compatibility.document"
