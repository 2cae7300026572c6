"""Fit a question with its context into the window of the model that answers.

What is too long is cut from the context, by the rules of `context_text.py`: documents are shortened by what is worth
least, the first one last, and the last ones are left out. Equal contexts are cut
equally, whatever the length of their questions (but for very long ones), so that they stay one main.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from parallelmind.answering.context_rows import ContextRow
from parallelmind.errors import DataError
from parallelmind.retrieval.budget import TokenBudget
from parallelmind.retrieval.context_text import SEPARATOR, assemble

_QUESTION_STEPS = 32
"""Room for questions is kept in steps of this part of the window: equal for all questions of about one length."""
_LONGEST_TOKEN = 8
"""Characters; of a context with more for each token of the window, only the beginning is tokenised."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that leaves room for its answer."""

    main_ids: list[int]
    prompt_ids: list[int]
    cut: bool
    """Its context was longer."""


class ContextWindow:
    """Makes prompts that fit.

    Args:
        encode: token ids of main and branch for a row.
        budget: counts tokens of contexts, best with the tokenizer of the model.
        tokens: of the window.
    """

    def __init__(
        self, encode: Callable[[ContextRow], tuple[list[int], list[int]]], budget: TokenBudget, *, tokens: int
    ) -> None:
        self._encode = encode
        self._budget = budget
        self.tokens = tokens

    def fit(self, row: ContextRow, *, max_new_tokens: int) -> Fitted:
        """The prompt of a row, with as much of its context as fits.

        The answer is left its `max_new_tokens`, but at most half of what instructions and question leave.

        Raises:
            DataError: not even the question alone fits.
        """
        text = row.context
        if len(text) > _LONGEST_TOKEN * self.tokens:
            text = self._cut(text, self.tokens)
        main, prompt = self._encode(dataclasses.replace(row, context=text))
        if text == row.context and len(main) + self._rounded(len(prompt)) + max_new_tokens <= self.tokens:
            return Fitted(main, prompt, cut=False)
        bare_main, bare_prompt = self._encode(dataclasses.replace(row, context=""))
        question = self._rounded(len(bare_prompt))
        if len(bare_main) + question + 2 > self.tokens:  # a very long one
            question = len(bare_prompt)
        left = self.tokens - len(bare_main) - question
        if left < 1:
            asked = len(bare_main) + len(bare_prompt)
            raise DataError(
                f"too long for the model even without its context: the question and its instructions have {asked} "
                f"tokens, the model takes {self.tokens} with at least one new token; shorten the question or the "
                "--prompt_template, or choose a model with a longer window."
            )
        room = left - max(1, min(max_new_tokens, left // 2))
        limit = room
        while True:
            text = self._cut(row.context, limit)
            main, prompt = self._encode(dataclasses.replace(row, context=text))
            # Tokens at the seams, and names of control tokens, are counted otherwise there than in the context alone.
            over = len(main) - len(bare_main) + max(0, len(prompt) - question) - room
            if over <= 0 or not text:
                return Fitted(main, prompt, cut=text != row.context)
            limit -= over

    def _cut(self, text: str, limit: int) -> str:
        if limit <= 0 or not text:
            return ""
        documents = [(None, part) for part in text.split(SEPARATOR)]
        return assemble(documents, budget=self._budget, max_tokens=limit).text

    def _rounded(self, tokens: int) -> int:
        step = max(1, self.tokens // _QUESTION_STEPS)
        return -(-tokens // step) * step
