"""How many tokens a context has, and where to end one that has too many."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from parallelmind.errors import SettingsError
from parallelmind.retrieval.shortening import shortened

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_CACHED = 256
_BOUNDARIES = (re.compile(r"\n\s*\n"), re.compile(r"(?<=[.!?])\s|(?<=[。！？])|\n"), re.compile(r"\s"))
_LEAST_KEPT = 0.5
_CHARACTERS_PER_TOKEN = (2, 8)
"""Only the beginning of a long text is tokenised at first: this many characters for each token that may be kept."""
_MARGIN = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """A text within a budget."""

    text: str
    truncated: bool
    tokens: int | None
    """None if the text has fewer bytes than the budget has tokens: then nothing had to be counted."""


class TokenBudget:
    """Cuts texts at the end of a paragraph, else of a sentence or line, else between words; and shortens documents."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.cut = functools.lru_cache(_CACHED)(self._cut)
        self.shorten = functools.lru_cache(_CACHED)(self._shorten)

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _cut(self, text: str, limit: int) -> Cut:
        """`text`, or the beginning of it that has at most `limit` tokens."""
        # A token is at least one byte, in every tokenizer that keeps text as it is.
        if len(text) <= limit and len(text.encode("utf-8")) <= limit:
            return Cut(text, truncated=False, tokens=None)
        ends = self._token_ends(text, limit)
        if len(ends) <= limit:
            return Cut(text, truncated=False, tokens=len(ends))
        kept = _at_boundary(text, ends[limit - 1] if limit else 0)
        # Tokens of a beginning may differ from the beginning of the tokens.
        while (tokens := self.count(kept)) > limit:
            kept = _at_boundary(kept, len(kept) - (tokens - limit))
        return Cut(kept, truncated=True, tokens=tokens)

    def _shorten(self, document: str, limit: int) -> Cut:
        """`document`, or what is worth most of it within `limit` tokens."""
        whole = self.cut(document, limit)
        if not whole.truncated:
            return whole
        text = shortened(document, limit, self.count, lambda text, room: self.cut(text, room).text)
        return Cut(text, truncated=True, tokens=self.count(text))

    def _token_ends(self, text: str, limit: int) -> list[int]:
        """Where each token ends; of a text that surely has more tokens than `limit`, at least those up to the limit."""
        for part in (*(text[: limit * characters] for characters in _CHARACTERS_PER_TOKEN), text):
            offsets = self._tokenizer.encode(part, add_special_tokens=False).offsets
            # The tokens at the end of a part may go on in the text.
            if len(part) == len(text) or len(offsets) > limit + _MARGIN:
                break
        return [end for _, end in offsets]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model: `tiny`, a local folder, or a hub name.

    Raises:
        SettingsError: there is none by this name.
    """
    from tokenizers import Tokenizer

    folder = Path(str(resources.files("parallelmind"))) / "assets" / "tiny" if name == "tiny" else Path(name)
    try:
        if (file := folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(file))
        from transformers import AutoTokenizer

        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
        return tokenizer
    except Exception as error:  # the libraries raise plain Exception, and many kinds of it
        raise SettingsError(
            f"--tokenizer {name!r} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "give a folder with a tokenizer.json, a hub name, or tiny."
        ) from error


def _at_boundary(text: str, end: int) -> str:
    least = int(end * _LEAST_KEPT)
    for boundary in _BOUNDARIES:
        ends = [found.start() for found in boundary.finditer(text, least, end + 1) if found.start() <= end]
        if ends:
            return text[: ends[-1]].rstrip()
    return text[:end]
