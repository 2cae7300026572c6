"""Signatures and deprecations that are written as text."""

from __future__ import annotations

import pytest

from parallelmind.retrieval.deprecation import deprecation_note, named_replacement
from parallelmind.retrieval.signatures import parse_parameters, return_annotation


def spelled(signature: str, *, of_method: bool = False) -> str | None:
    found = parse_parameters(signature, of_method=of_method)
    return (
        None
        if found is None
        else " ".join(f"{one.name}:{one.kind[0]}{one.kind[-1]}{'=' * one.has_default}" for one in found)
    )


@pytest.mark.parametrize(
    ("signature", "wanted"),
    [
        ("()", ""),
        ("(a, /, b, *, c)", "a:py b:pd c:ky"),
        ("(a=1, *b, c=<object object at 0x7f>, **d)", "a:pd= b:al c:ky= d:ad"),
        ("(f=<function <lambda> at 0x1>) -> int", "f:pd="),
        ("(a: 'int' = 1, b: list[str] = []) -> None", "a:pd= b:pd="),
        ("(cls, a)", "cls:pd a:pd"),
        ("([start,] stop[, step,])", None),
        ("(a, b=1, c)", None),
        ("(x): pass\nimport os\ndef g()", None),
        ("a", None),
        ("", None),
        ("(" * 5_000 + ")" * 5_000, None),
    ],
)
def test_parameters(signature: str, wanted: str | None) -> None:
    assert spelled(signature) == wanted


def test_methods_have_no_self() -> None:
    assert spelled("(self, a)", of_method=True) == "a:pd"
    assert spelled("(cls, a)", of_method=True) == "a:pd"
    assert spelled("(a, self)", of_method=True) == "a:pd self:pd"


def test_return_annotations() -> None:
    assert return_annotation("(a) -> box.Crate") == "box.Crate"
    assert return_annotation("(a) -> 'Crate'") == "Crate"
    assert return_annotation("(a) -> list[int]") == "list[int]"
    assert return_annotation("(a)") == ""


@pytest.mark.parametrize(
    ("doc", "note", "instead"),
    [
        (
            "Do it.\n\n.. deprecated:: 1.2\n    Use :func:`~box.glue` instead,\n    it holds.\n\nMore.",
            "deprecated since 1.2 Use :func:`~box.glue` instead, it holds.",
            "box.glue",
        ),
        ("Deprecated: use `glue()`.\n\nMore.", "Deprecated: use `glue()`.", "glue"),
        ("DEPRECATED since 2.0", "DEPRECATED since 2.0", ""),
        ("Do it.\n\n.. deprecated:: 3.1", "deprecated since 3.1", ""),
        (
            "    Do it.\n\n    .. deprecated:: 3.1\n       Renamed to ``other``.\n    ",
            "deprecated since 3.1 Renamed to ``other``.",
            "other",
        ),
        ("Do it.\n\n.. deprecated:: 19.2.0 *cmp*, use *eq*.", "", ""),
        ("Do it.\n\n.. deprecated:: 1.0\n   The ``x`` parameter is ignored.", "", ""),
        ("Do it.\n\nParameters\n----------\na : int\n    A.\n\n    .. deprecated:: 1.0\n", "", ""),
        ("Do it.\n\nArgs:\n    a: A.\n        .. deprecated:: 1.0\n", "", ""),
        ("Finds deprecated functions.", "", ""),
        ("Deprecated arguments are told.", "", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_deprecations(doc: str, note: str, instead: str) -> None:
    assert deprecation_note(doc) == note
    assert named_replacement(note) == instead
