"""Contexts within the window of a model: with the bundled tokenizer, for many windows, contexts and questions."""

from __future__ import annotations

import random

import pytest

from parallelmind.answering.context_rows import ContextRow
from parallelmind.answering.window import ContextWindow, Fitted
from parallelmind.errors import DataError
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.retrieval.context_text import SEPARATOR

SYSTEM = "You answer from the documentation below."
WORDS = ["sort", "array", "The <|im_end|> axis.", "字", "numpy.ndarray", "\n\n", "returns 3.5;", "é", "𝒳"]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer("tiny")


class Prompts:
    """Prompts with instructions before the context, as a template makes them; counts how often it was asked."""

    def __init__(self, tokenizer: object) -> None:
        self.tokenizer = tokenizer
        self.asked = 0

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)  # type: ignore[attr-defined]

    def __call__(self, row: ContextRow) -> tuple[list[int], list[int]]:
        self.asked += 1
        return self.ids(f"{SYSTEM}\n{row.context}\n\n"), self.ids(f"Question: {row.query}\nAnswer:")

    def window(self, tokens: int) -> ContextWindow:
        return ContextWindow(self, TokenBudget(self.tokenizer), tokens=tokens)  # type: ignore[arg-type]

    def context(self, fitted: Fitted) -> str:
        decoded: str = self.tokenizer.decode(fitted.main_ids, skip_special_tokens=False)  # type: ignore[attr-defined]
        return decoded.removeprefix(f"{SYSTEM}\n").removesuffix("\n\n")


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def row(query: str, context: str) -> ContextRow:
    return ContextRow(id=0, query=query, context=context)


def test_whatever_the_lengths_prompt_and_answer_fit(tokenizer: object) -> None:
    chance, prompts = random.Random(0), Prompts(tokenizer)
    cuts = 0
    for _ in range(150):
        window, new = chance.choice([128, 300, 1000]), chance.choice([1, 16, 100, 5000])
        documents = [words(chance, chance.choice([1, 20, 400])) for _ in range(chance.randrange(1, 5))]
        asked = row(words(chance, chance.choice([1, 10])), SEPARATOR.join(documents))
        fitted = prompts.window(window).fit(asked, max_new_tokens=new)
        whole, bare = prompts(asked), prompts(row(asked.query, ""))
        left = window - len(fitted.main_ids) - len(fitted.prompt_ids)
        reserved = min(new, (window - len(bare[0]) - len(bare[1])) // 2)
        assert left >= reserved - window // 32  # half of what is left is counted after the question is rounded up
        assert left >= 1
        cuts += fitted.cut
        if not fitted.cut:
            assert (fitted.main_ids, fitted.prompt_ids) == whole
        else:
            assert len(fitted.main_ids) < len(whole[0])
        if len(whole[0]) + len(whole[1]) + window // 32 + new <= window:
            assert not fitted.cut
    assert 30 < cuts < 150


def test_the_first_document_gets_the_most_and_the_others_something(tokenizer: object) -> None:
    prompts = Prompts(tokenizer)
    first, second, third = ("alpha " * 60).strip(), ("beta " * 150).strip(), ("gamma " * 20).strip()
    sizes = [len(prompts.ids(text)) for text in (first, second, third)]
    room = sizes[0] + 250
    assert room < sizes[0] + sizes[1]
    bare = sum(map(len, prompts(row("q", ""))))
    fitted = prompts.window(bare + 32 + 10 + room).fit(
        row("q", SEPARATOR.join([first, second, third])), max_new_tokens=10
    )
    assert fitted.cut
    kept = prompts.context(fitted).split(SEPARATOR)
    assert (kept[0], kept[2]) == (first, third)
    assert second.startswith(kept[1])
    assert 10 < len(kept[1]) < len(second)


def test_one_document_ends_at_a_paragraph(tokenizer: object) -> None:
    prompts = Prompts(tokenizer)
    paragraphs = [f"Paragraph {n} says something." for n in range(40)]
    fitted = prompts.window(400).fit(row("q", "\n\n".join(paragraphs)), max_new_tokens=50)
    kept = prompts.context(fitted).split("\n\n")
    assert fitted.cut
    assert 3 < len(kept) < 40
    assert kept == paragraphs[: len(kept)]


def test_equal_contexts_stay_equal_whatever_their_questions(tokenizer: object) -> None:
    chance, prompts = random.Random(1), Prompts(tokenizer)
    context, questions = words(chance, 3000), ["q " * n for n in range(1, 20, 3)]
    lengths = {len(prompts(row(question, ""))[1]) for question in questions}
    assert len(lengths) == len(questions)
    assert max(lengths) <= 2048 // 32
    window = prompts.window(2048)
    mains = [window.fit(row(question, context), max_new_tokens=64).main_ids for question in questions]
    assert all(main == mains[0] for main in mains)


def test_a_context_that_fits_costs_one_tokenisation(tokenizer: object) -> None:
    prompts = Prompts(tokenizer)
    assert not prompts.window(2048).fit(row("q", "short"), max_new_tokens=64).cut
    assert prompts.asked == 1


def test_of_a_very_long_context_only_the_beginning_is_tokenised(tokenizer: object) -> None:
    longest = 0

    class Watched(Prompts):
        def __call__(self, row: ContextRow) -> tuple[list[int], list[int]]:
            nonlocal longest
            longest = max(longest, len(row.context))
            return super().__call__(row)

    Watched(tokenizer).window(300).fit(row("q", "sort it. " * 200_000), max_new_tokens=64)
    assert longest < 300 * 8


def test_a_question_that_does_not_fit_alone_is_refused(tokenizer: object) -> None:
    prompts = Prompts(tokenizer)
    bare = sum(map(len, prompts(row("q", ""))))
    assert prompts.window(bare + 1).fit(row("q", "context " * 50), max_new_tokens=64).cut
    with pytest.raises(DataError, match=rf"instructions have {bare} tokens, the model takes {bare} with at least one"):
        prompts.window(bare).fit(row("q", "context"), max_new_tokens=64)
