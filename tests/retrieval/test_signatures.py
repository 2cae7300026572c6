"""Signatures that are written as text."""

from __future__ import annotations

from parallelmind.retrieval.signatures import MAX_SIGNATURE, bounded_signature, return_annotation


def test_return_annotations() -> None:
    assert return_annotation("(a) -> box.Crate") == "box.Crate"
    assert return_annotation("(a) -> 'Crate'") == "Crate"
    assert return_annotation("(a) -> list[int]") == "list[int]"
    assert return_annotation("(a=<object object>) -> box.Crate") == "box.Crate"
    assert return_annotation("(f=<function <lambda> at 0x1>, g=<box.Nothing>) -> Crate") == "Crate"
    for signature in ("(a)", "", "a", "([start,] stop)", "(a) -> ", "(x): pass\nimport os\ndef g()", "(" * 5_000):
        assert return_annotation(signature) == ""


def test_long_signatures_are_shortened_by_what_says_least() -> None:
    short = "(a, b: int = 1, *, c: 'list[int]' = None) -> str"
    assert bounded_signature(short) == short
    table = "{" + ", ".join(f"{n}: 'value'" for n in range(40)) + "}"
    assert bounded_signature(f"(a, table: dict = {table}, *, c=1) -> str") == "(a, table: dict=..., *, c=1) -> str"
    told = ", ".join(f"p{n}: Annotated[int, Doc('{'words ' * 30}')] = {n}" for n in range(20))
    assert bounded_signature(f"({told}) -> int").startswith("(p0: int=0, p1: int=1, ")
    typed = ", ".join(f"p{n}: Mapping[str, Sequence[Callable[[int], tuple[float, ...]]]] = None" for n in range(40))
    assert bounded_signature(f"({typed})").startswith("(p0=None, p1=None, ")


def test_signatures_that_stay_long_or_cannot_be_read_are_cut_after_a_parameter() -> None:
    for text in (f"({', '.join(f'parameter_{n}=0' for n in range(999))})", f"([a,] {', '.join(map(str, range(999)))})"):
        cut = bounded_signature(text)
        assert len(cut) <= MAX_SIGNATURE
        assert cut.endswith(", …)")
        assert text.startswith(cut.removesuffix(", …)") + ",")
