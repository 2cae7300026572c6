"""Signatures that are written as text."""

from __future__ import annotations

from parallelmind.retrieval.signatures import return_annotation


def test_return_annotations() -> None:
    assert return_annotation("(a) -> box.Crate") == "box.Crate"
    assert return_annotation("(a) -> 'Crate'") == "Crate"
    assert return_annotation("(a) -> list[int]") == "list[int]"
    assert return_annotation("(a=<object object>) -> box.Crate") == "box.Crate"
    assert return_annotation("(f=<function <lambda> at 0x1>, g=<box.Nothing>) -> Crate") == "Crate"
    for signature in ("(a)", "", "a", "([start,] stop)", "(a) -> ", "(x): pass\nimport os\ndef g()", "(" * 5_000):
        assert return_annotation(signature) == ""
