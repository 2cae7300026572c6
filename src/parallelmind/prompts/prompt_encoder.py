"""Prompts to token ids: the one place that chat, server, answering and training ask.

| prompt | ids |
|---|---|
| main and branches (`texts`) | encoded apart: a main has the same ids whatever follows it |
| prompts alone (`completions`) | each encoded as a whole |
| a conversation and what follows it (`conversation`) | what the chat template renders, encoded as a whole |
| a conversation with text from outside (`split`) | the same ids; control tokens in that text are plain text |
| a conversation that is trained (`learned`) | the same ids, then the assistant's turn; its tokens are marked |

In the second to fourth row, what all prompts begin with in common is main.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from parallelmind.columnar import Visibility, sees_main
from parallelmind.prompts.conversation import Message, Tool, user
from parallelmind.prompts.encode import PromptIds, encode_branch, encode_main, shared_length
from parallelmind.prompts.pieces import Piece, PieceEncoder, SplitPrompt
from parallelmind.prompts.slots import Slots
from parallelmind.prompts.spans import LearnedIds, encode_spans, spoken_text
from parallelmind.prompts.template import ChatTemplate

_PROBES = ("0", "a")
"""Two texts that begin differently, and so mark where any text begins: main depends on no branch."""
_KEPT_MAINS = 4


class PromptEncoder:
    """Token ids of prompts, by one tokenizer and its chat template; `options` are passed on to that."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, **options)
        self.slots = Slots(self.template)
        self._main_of = lru_cache(_KEPT_MAINS)(self._find_main)

    def texts(self, main: str, prompts: Sequence[str], *, visibility: Visibility = "isolated") -> PromptIds:
        """A main and prompts that continue it, as a record has them."""
        ids = encode_main(self.tokenizer, main)
        has_main = bool(ids) and sees_main(visibility)
        return PromptIds(ids, [encode_branch(self.tokenizer, prompt, has_main=has_main) for prompt in prompts])

    def completions(self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> PromptIds:
        """One prompt or several, as texts or ids: what they begin with in common as main, the rest as branches."""
        several: Sequence[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        wholes = [encode_main(self.tokenizer, one) if isinstance(one, str) else list(one) for one in several]
        return _divided(wholes)

    def conversation(
        self,
        messages: Sequence[Message],
        branches: Sequence[Sequence[Message]] = ((),),
        *,
        tools: Sequence[Tool] = (),
        visibility: Visibility = "isolated",
    ) -> PromptIds:
        """A conversation, and for each branch the turns that it adds, up to where the assistant's answer begins.

        A branch without turns answers the conversation as it is. main and branch together are what the chat template
        renders, encoded as a whole; main is the same whatever the branches add. Branches that do not see main hold all
        of it themselves.

        Raises:
            RequestError: the chat template refuses the conversation.
        """
        probes = [[user(probe)] for probe in _PROBES] if any(branches) else []
        prompts = [self.template.accept([*messages, *added], tools).prompt for added in (*branches, *probes)]
        wholes = self._conversations([[Piece(prompt, is_data=False)] for prompt in prompts])
        return _divided(wholes[: len(branches)], wholes[len(branches) :], visibility)

    def continued(self, main: str, said: str, prompts: Sequence[str]) -> PromptIds:
        """The same for a text and what was said under it, without any template: `said` and a prompt are one branch."""
        start = encode_main(self.tokenizer, main)
        wholes = [
            start + encode_branch(self.tokenizer, said + prompt, has_main=bool(start))
            for prompt in (*prompts, *_PROBES)
        ]
        return _divided(wholes[: len(prompts)], wholes[len(prompts) :])

    def split(self, prompt: SplitPrompt) -> tuple[list[int], list[int]]:
        """Ids of main and branch. Equal mains have equal ids, unless a branch begins within main's last token."""
        if prompt.form == "text":
            [main] = self._encode_pieces([prompt.main], with_start=True)
            [branch] = self._encode_pieces([prompt.branch], with_start=not main)
            return main, branch
        [whole] = self._conversations([(*prompt.main, *prompt.branch)])
        main, [branch] = _divided([whole], [self._main_of(prompt.main)])
        return main, branch

    def learned(self, messages: Sequence[Message], *, has_main: bool, tools: Sequence[Tool] = ()) -> LearnedIds:
        """A conversation with the assistant's answers, and which tokens are theirs, end marks included.

        Under a main there is no second beginning: main has what the tokenizer puts in front of a text.

        Raises:
            RequestError: the chat template refuses the conversation.
        """
        spoken = spoken_text(self.tokenizer, self.template, messages, tools)
        ids, learned = encode_spans(self.tokenizer, spoken)
        if has_main and ids and ids[0] == self.tokenizer.bos_token_id:
            return LearnedIds(ids[1:], learned[1:])
        if not has_main and not self.template.is_own:
            start = encode_main(self.tokenizer, spoken.text)[: -len(ids)]
            ids, learned = start + ids, [False] * len(start) + learned
        return LearnedIds(ids, learned)

    def _conversations(self, texts: Sequence[Sequence[Piece]]) -> list[list[int]]:
        """A chat template writes its own special tokens; the plain form of a dialogue does not."""
        return self._encode_pieces(texts, with_start=not self.template.is_own)

    @cached_property
    def _encode_pieces(self) -> PieceEncoder:
        return PieceEncoder(self.tokenizer)

    def _find_main(self, main: tuple[Piece, ...]) -> list[int]:
        """What main is whatever follows it."""
        probed = self._conversations([(*main, Piece(probe, is_data=True)) for probe in _PROBES])
        return _divided(probed).main


def _divided(
    wholes: Sequence[list[int]], probes: Sequence[list[int]] = (), visibility: Visibility = "isolated"
) -> PromptIds:
    """What the wholes, and the probes, begin with in common as main, and the rest of each whole."""
    length = shared_length([*wholes, *probes])
    branches = [whole[length:] for whole in wholes] if sees_main(visibility) else list(wholes)
    return PromptIds(wholes[0][:length], branches)
