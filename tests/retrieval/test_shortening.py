"""Documents that are too long: what is worth least goes, and code is never cut."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.retrieval.context_text import Document, assemble, document_text, shown_signature
from parallelmind.retrieval.corpus_rows import Example, Mention
from parallelmind.retrieval.sections import Worth, sections_of
from tests.retrieval.small_corpus import row

BUDGET = TokenBudget(load_tokenizer("tiny"))
NUMPY = textwrap.dedent("""\
    box.fold(sheet, *, times=1)
    (function of box 1.0)

    Fold a sheet along its middle.

    It goes on for a while, and says what else there is to say of paper.

    Parameters
    ----------
    sheet : Sheet
        What is folded.

    Returns
    -------
    Sheet
        Half as large.

    Notes
    -----
    Very many words about the history of paper. Very many words about the history of paper. Very many words.

    References
    ----------
    .. [1] A book.

    Examples
    --------
    First a plain one:

    >>> box.fold("a")
    'a/2'

    Then another, with more:

    >>> for one in ("b", "c"):
    ...     box.fold(one)
    'b/2'
    'c/2'""")
GOOGLE = textwrap.dedent("""\
    box.fold(sheet)
    (function of box 1.0)

    Fold it.

    Args:
        sheet: What is folded.

    Returns:
        Half of it.

    Example:

        for one in sheets:

            fold(one)

    Note:
        Paper is made of wood, and so on and so forth, for many words more.""")


def worths(text: str) -> list[Worth]:
    return [section.worth for section in sections_of(text)]


def test_sections() -> None:
    assert worths(NUMPY) == [
        Worth.HEAD, Worth.SUMMARY, Worth.PROSE, Worth.PARAMETERS, Worth.RESULTS, Worth.NOTES, Worth.REFERENCES,
        Worth.EXAMPLE,
    ]  # fmt: skip
    assert worths(GOOGLE) == [
        Worth.HEAD, Worth.SUMMARY, Worth.PARAMETERS, Worth.RESULTS, Worth.EXAMPLE, Worth.NOTES,
    ]  # fmt: skip
    fields = "f(a)\n\nSummary.\n\n:param a: It.\n:param b: That.\n\n:returns: This.\n\nMore."
    assert worths(fields) == [Worth.HEAD, Worth.SUMMARY, Worth.PARAMETERS, Worth.RESULTS]
    code = sections_of(GOOGLE)[4].units[-1]
    assert code.is_code, "an empty line does not end it"
    assert code.text == "    for one in sheets:\n\n        fold(one)"


def test_code_within_the_text_is_an_example() -> None:
    text = (
        "f(a)\n\nSummary.\n\n.. code-block:: python\n\n    f(1)\n\n    f(2)\n\nMore words.\n\nSo::\n\n    f(3)\n\nEnd."
    )
    assert worths(text) == [
        Worth.HEAD, Worth.SUMMARY, Worth.EXAMPLE, Worth.PROSE, Worth.EXAMPLE, Worth.PROSE,
    ]  # fmt: skip
    assert sections_of(text)[2].units[-1].text == "    f(1)\n\n    f(2)"
    long = text.replace("More words.", "More words. " * 60)
    assert "    f(1)\n\n    f(2)" in BUDGET.shorten(long, 90).text


def test_source_code_is_cut_at_its_end() -> None:
    code = 'def f(a):\n    """Do it.\n\n    Returns:\n        It.\n\n    >>> f(1)\n    """\n\n    b = a\n\n    return b'
    text = f"m.f(a)\n(function of m 1.0)\n\n{code}"
    for limit in range(BUDGET.count("m.f(a)\n(function of m 1.0)") + 14, BUDGET.count(text)):
        assert text.startswith(BUDGET.shorten(text, limit).text)


def test_an_example_keeps_its_place_and_loses_its_words() -> None:
    text = f"f(a)\n\nIt.\n\nExample from docs/a.rst of box 1.0. {'Very long words. ' * 30}\n\n    f(1)\n\nNote:\n    x"
    assert "Example from docs/a.rst of box 1.0.\n\n    f(1)" in BUDGET.shorten(text, 90).text


def test_nothing_is_lost_where_all_fits() -> None:
    for text in (NUMPY, GOOGLE):
        assert "\n\n".join(unit.text for section in sections_of(text) for unit in section.units) == text
        assert BUDGET.shorten(text, 10_000).text == text


def test_what_goes_first() -> None:
    whole = BUDGET.count(NUMPY)
    shorter = BUDGET.shorten(NUMPY, whole - 20)
    assert shorter.truncated
    assert "A book" not in shorter.text
    assert "Half as large" in shorter.text
    few = BUDGET.shorten(NUMPY, 170)
    assert few.tokens is not None
    assert few.tokens <= 170
    assert few.text.startswith("box.fold(sheet, *, times=1)\n(function of box 1.0)\n\nFold a sheet along its middle.")
    assert ">>> box.fold(\"a\")\n'a/2'" in few.text
    assert "history" not in few.text
    assert few.text.index("Parameters") < few.text.index("Examples"), "in the order of the document"


@pytest.mark.parametrize("text", [NUMPY, GOOGLE])
def test_code_is_whole_or_not_there(text: str) -> None:
    blocks = [unit.text for section in sections_of(text) for unit in section.units if unit.is_code]
    for limit in range(5, BUDGET.count(text), 3):
        cut = BUDGET.shorten(text, limit)
        assert BUDGET.count(cut.text) <= limit
        for block in blocks:
            lines = [line for line in block.splitlines() if line.strip() and line.strip() != ">>>"]
            present = sum(line in cut.text for line in lines)
            assert present in (0, len(lines)), (limit, cut.text)


@settings(max_examples=60)
@given(
    text=st.text(alphabet="ab.\n :>-=`#()", max_size=200) | st.lists(st.sampled_from(NUMPY.split("\n"))).map("\n".join),
    limit=st.integers(0, 80),
)
def test_any_text_is_within_its_limit(text: str, limit: int) -> None:
    assert BUDGET.count(BUDGET.shorten(text, limit).text) <= limit


def test_a_long_signature_leaves_room() -> None:
    types = ", ".join(f"parameter_{n}: Mapping[str, Sequence[int]] = None" for n in range(30))
    text = f"box.make({types}) -> Box\n(function of box 1.0)\n\nMake one.\n\n>>> box.make()\n"
    short = BUDGET.shorten(text, 160).text
    assert short.startswith("box.make(parameter_0=None, ")
    assert short.split("\n")[0].endswith(", …)")
    assert "Make one." in short


def test_the_first_document_gets_the_most_and_each_other_its_head() -> None:
    texts = [(None, NUMPY), (None, NUMPY.replace("fold", "bend")), (None, GOOGLE)]
    context = assemble(texts, budget=BUDGET, max_tokens=600)
    first, second, third = context.text.split("\n\n---\n\n")
    assert context.truncated
    assert (context.tokens or 0) <= 600
    assert len(first) > len(second)
    for part, summary in (
        (first, "Fold a sheet"),
        (second, "Fold a sheet".replace("Fold", "Fold")),
        (third, "Fold it"),
    ):
        assert summary in part
    few = assemble(texts, budget=BUDGET, max_tokens=90)
    assert (few.tokens or 0) <= 90
    assert few.text.startswith("box.fold(")
    assert assemble(texts, budget=BUDGET, max_tokens=0).text.count("\n\n---\n\n") == 2


def test_what_a_document_has() -> None:
    given_row = row(
        "box.fold", "", parameters=(("a", 0, False), ("b", 1, True), ("c", 3, True), ("rest", 4, True)),
        examples=(Example("fold(1)\n\nfold(2)", "docs/a.rst of box 1.0", "Fold it so:"),),
        mentions=(Mention("To halve paper, use fold.", "docs/b.rst of box 1.0"),),
    )  # fmt: skip
    text = document_text(Document("box", "1.0", 0, "box.fold"), given_row)
    assert text == (
        "box.fold(a, /, b=..., *, c=..., **rest)\n(function of box 1.0)\n\nIt has no documentation of its own.\n\n"
        "Said in docs/b.rst of box 1.0: To halve paper, use fold.\n\n"
        "Example from docs/a.rst of box 1.0. Fold it so:\n\n    fold(1)\n\n    fold(2)"
    )
    assert shown_signature(row("box.x", "", signature="(y)", parameters=())) == "(y)"
    assert shown_signature(row("box.x", "", parameters=())) == "()"
    assert sections_of(text)[-1].units[-1].text == "    fold(1)\n\n    fold(2)"
