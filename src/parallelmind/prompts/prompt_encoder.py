"""Prompts to token ids: the one place that chat, server, answering and training ask.

| prompt | ids |
|---|---|
| main and branches (`texts`) | encoded apart: a main has the same ids whatever follows it |
| prompts alone (`completions`) | each encoded as a whole |
| a conversation and what follows it (`conversation`) | what the chat template renders, encoded as a whole |
| a conversation with text from outside (`split`) | the same ids; control tokens in that text are plain text |
| a conversation that is trained (`supervised`) | the same ids, then the assistant's turn; its tokens are marked |

In the second to fourth row, what all prompts begin with in common is main.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from parallelmind.prompts.conversation import Message, Tool, user
from parallelmind.prompts.encode import PromptIds, encode_branch, encode_main, encode_parts, shared_length, start_ids
from parallelmind.prompts.length import TextTooLongError, length_bound
from parallelmind.prompts.pieces import Piece, PieceEncoder, SplitPrompt
from parallelmind.prompts.slots import Slots
from parallelmind.prompts.spans import SupervisedIds, encode_spans, mark_answers
from parallelmind.prompts.template import ChatTemplate
from parallelmind.settings.visibility import Visibility, sees_main

_PROBES = ("0", "a")
"""Two texts that begin differently, and so mark where any text begins: main depends on no branch."""
_KEPT_MAINS = 4
_TURN = 256
"""Tokens that a template puts in front of a turn, at most: a branch without a turn has none of them."""
_WORD = re.compile(r"(?<=\S)[ \n](?=\S)")
"""Where a word begins, with the space or line end that belongs to its token."""
_FAR = 100
_SEARCHED = 10_000
"""Characters before the place where prompts part: a cut is not nearer than the one and not farther than the other."""


class PromptEncoder:
    """Token ids of prompts, by one tokenizer and its chat template; `options` are passed on to that.

    Args:
        max_tokens: texts and conversations that are certain to have more tokens are not tokenized; None: all are.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int | None = None, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._bound = None if max_tokens is None else length_bound(tokenizer)
        self.template = ChatTemplate(tokenizer, **options)
        self.slots = Slots(self.template)
        self._main_of = lru_cache(_KEPT_MAINS)(self._find_main)

    def check_length(self, text: str, max_tokens: int | None = None) -> None:
        """Whether a text may have as few tokens as fit, which its length tells at once, if not for sure.

        Args:
            max_tokens: None: those of the encoder.
        Raises:
            TextTooLongError: it cannot.
        """
        most = self.max_tokens if max_tokens is None else max_tokens
        if self._bound is not None and most is not None:
            least = self._bound.least_tokens(text)
            if least > most:
                raise TextTooLongError(f"it has {least} tokens or more, {most} fit; shorten it")

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
            RequestError: the chat template refuses the conversation, or it is too long for `max_tokens`.
        """
        probes = [[user(probe)] for probe in _PROBES] if any(branches) else []
        probed = [self._rendered(messages, added, tools) for added in probes]
        known = [self._dialogue(prompt) for prompt in probed]
        if self.max_tokens is not None and known and shared_length(known) > self.max_tokens + _TURN:
            # Each of many branches would render and encode all of it again, only to learn the same.
            raise TextTooLongError(f"it has more than {self.max_tokens} tokens, which is what fits; shorten it")
        prompts = [self._rendered(messages, added, tools) for added in branches]
        return _divided(self._encode_all(prompts, probed, known), known, visibility)

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
            main = self._encode_pieces(prompt.main, with_start=True)
            return main, self._encode_pieces(prompt.branch, with_start=not main)
        whole = self._conversation((*prompt.main, *prompt.branch))
        main, [branch] = _divided([whole], [self._main_of(prompt.main)])
        return main, branch

    def supervised(self, messages: Sequence[Message], *, has_main: bool, tools: Sequence[Tool] = ()) -> SupervisedIds:
        """A conversation with the assistant's answers, and which tokens are theirs, end marks included.

        Under a main there is no second beginning: main has what the tokenizer puts in front of a text.

        Raises:
            RequestError: the chat template refuses the conversation.
        """
        ids, loss_mask, lost = encode_spans(self.tokenizer, mark_answers(self.template, messages, tools))
        if has_main and ids and ids[0] == self.tokenizer.bos_token_id:
            return SupervisedIds(ids[1:], loss_mask[1:], lost)
        if ids and not has_main and not self.template.is_own:
            start = start_ids(self.tokenizer)
            ids, loss_mask = start + ids, [False] * len(start) + loss_mask
        return SupervisedIds(ids, loss_mask, lost)

    def supervised_branches(
        self,
        main: Sequence[Message],
        branches: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Tool] = (),
        has_main: bool = False,
    ) -> tuple[list[int], list[SupervisedIds]]:
        """A conversation and branches that continue it by turns, answers included: main, and each branch as a whole.

        main is what `conversation` gives these branches when their last answers are asked for. `has_main` is said of
        the conversation, as in `supervised`.

        Raises:
            RequestError: the chat template refuses the conversation.
        """
        wholes = [self.supervised([*main, *added], has_main=has_main, tools=tools) for added in branches]
        asked = [whole.ids[: _last_answer(whole.loss_mask)] for whole in wholes if any(whole.loss_mask)]
        if not asked:
            return [], wholes
        is_asked = any(added and added[0]["role"] != "assistant" for added in branches)
        probes = [self._dialogue(self._rendered(main, [user(probe)], tools)) for probe in _PROBES] if is_asked else []
        cut = int(has_main and bool(probes) and probes[0][:1] == [self.tokenizer.bos_token_id])
        return asked[0][: shared_length([*asked, *(probe[cut:] for probe in probes)])], wholes

    def _rendered(self, messages: Sequence[Message], added: Sequence[Message], tools: Sequence[Tool]) -> str:
        prompt = self.template.accept([*messages, *added], tools).prompt
        self.check_length(prompt)
        return prompt

    def _dialogue(self, text: str) -> list[int]:
        """A chat template writes its own special tokens; the plain form of a dialogue does not."""
        return encode_branch(self.tokenizer, text, has_main=self.template.is_own)

    def _encode_all(self, prompts: Sequence[str], probes: Sequence[str], known: Sequence[list[int]]) -> list[list[int]]:
        """The ids of each prompt as a whole; of many, a long text that all begin with is encoded once.

        `known` are the ids of the probes. A cut far from where they part that does not change them changes none.
        """
        shared = shared_length([*prompts, *probes])
        places = [
            match.start() for match in _WORD.finditer(prompts[0], max(0, shared - _SEARCHED), max(0, shared - _FAR))
        ]
        if probes and places and len(prompts) > 1:
            cut = places[-1]
            head = self._dialogue(prompts[0][:cut])

            def joined(texts: Sequence[str]) -> list[list[int]]:
                tails = encode_parts(self.tokenizer, [text[cut:] for text in texts])
                return [head + tails[text[cut:]] for text in texts]

            if joined(probes) == list(known):
                return joined(prompts)
        return [self._dialogue(prompt) for prompt in prompts]

    def _conversation(self, pieces: Sequence[Piece]) -> list[int]:
        return self._encode_pieces(pieces, with_start=not self.template.is_own)

    @cached_property
    def _encode_pieces(self) -> PieceEncoder:
        return PieceEncoder(self.tokenizer)

    def _find_main(self, main: tuple[Piece, ...]) -> list[int]:
        """What main is whatever follows it."""
        return _divided([self._conversation((*main, Piece(probe, is_data=True))) for probe in _PROBES]).main


def _last_answer(loss_mask: Sequence[bool]) -> int:
    """Where the last run of supervised tokens begins."""
    marks = bytes(loss_mask)
    return marks.rfind(0, 0, marks.rfind(1)) + 1


def _divided(
    wholes: Sequence[list[int]], probes: Sequence[list[int]] = (), visibility: Visibility = "isolated"
) -> PromptIds:
    """What the wholes, and the probes, begin with in common as main, and the rest of each whole."""
    length = shared_length([*wholes, *probes])
    branches = [whole[length:] for whole in wholes] if sees_main(visibility) else list(wholes)
    return PromptIds(wholes[0][:length], branches)
