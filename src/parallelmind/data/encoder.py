"""Training samples to token ids within the limits of length; what is cut or dropped is counted."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallelmind.data.planned import PlannedSample
from parallelmind.data.samples import Sample, SampleBranch
from parallelmind.errors import DataError, RequestError
from parallelmind.prompts.conversation import Message
from parallelmind.prompts.encode import closed, encode_branch, encode_main, encode_parts
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.prompts.spans import SupervisedIds

_LISTED = 20


@dataclass(kw_only=True)
class DataCounts:
    """What one pass over the data held, and what of it was cut or dropped."""

    records: int = 0
    rows: int = 0
    """Packed rows."""
    unrelated_rows: int = 0
    """Packed rows of several branches without a main, as `parallelmind convert` makes of unrelated conversations."""
    branches: int = 0
    tokens: int = 0
    """Of the packed rows, main once a row."""
    supervised_tokens: int = 0
    """Tokens whose loss is counted."""
    batches: int = 0
    """Micro-batches of all processes."""
    batch_tokens: int = 0
    """Of the micro-batches, without padding: main once in each of them where a row is computed in parts."""
    padding_tokens: int = 0
    """What fills up the sequences of the micro-batches to the length of the longest."""
    unpredicted_tokens: int = 0
    """First tokens of branches that are not supervised, since nothing is before them: they have no prompt, and no main
    or none that they see."""
    cut_branches: int = 0
    """Branches longer than the limit of one branch, shortened to it."""
    cut_tokens: int = 0
    dropped_branches: int = 0
    """Branches that do not fit a row, or of which no supervised token is left."""
    dropped_records: int = 0
    """Records of which no branch is left."""
    unlearned_turns: int = 0
    """Turns of the assistant that are not learned since their weight is 0."""
    unanswered_turns: int = 0
    """Turns left out since they are behind the last one that is learned."""
    unwritten_turns: int = 0
    """Turns of the assistant that are not learned since the chat template does not write them, or not their calls."""
    shortened_turns: int = 0
    """Learned turns whose thoughts, or words beside a call, the chat template leaves out."""
    unwritten_tools: int = 0
    """Tools that the chat template does not write."""
    notes: list[str] = field(default_factory=list)
    """The first branches and records that were cut or dropped, each with its place in the data."""

    @property
    def padding(self) -> float:
        """The share of padding in what is computed."""
        return self.padding_tokens / max(1, self.batch_tokens + self.padding_tokens)

    def add(self, other: DataCounts) -> None:
        """Count what another part of the data held, too."""
        for one in dataclasses.fields(self):
            if one.name != "notes":
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        for text in other.notes:
            self.note(text)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def note(self, text: str) -> None:
        if len(self.notes) < _LISTED:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class EncodedBranch:
    """One branch: its tokens, and which of them are supervised (one byte each, 0 or 1)."""

    ids: array[int]
    loss_mask: bytes
    number: int
    """Branch id under its main, from 1."""
    sample_branch: SampleBranch
    """What it was encoded from."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """The tokens of one sample."""

    main: array[int]
    branches: tuple[EncodedBranch, ...]
    where: str
    loose: bool
    main_text: str


class SampleEncoder:
    """Encodes samples with one tokenizer and one set of limits.

    Args:
        max_seq_len: tokens of one branch at most (no main counted); a longer one is cut at its end.
        max_model_len: positions of the model; main and each branch fit into it. 0: unknown.
        vocab_size: tokens of the model. 0: unknown.
        sees_main: branches see their main, so that their first token can be supervised without a prompt. If not, a main
            of one branch is left out.
        learn_main: the main of one branch is supervised, as its dataset does with the main of a record.
        strict: whatever would be cut or dropped is an error instead.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_seq_len: int,
        max_model_len: int = 0,
        vocab_size: int = 0,
        sees_main: bool = True,
        learn_main: bool = False,
        strict: bool = False,
    ):
        self.tokenizer = tokenizer
        self.settings: dict[str, Any] = {
            "max_seq_len": max_seq_len,
            "max_model_len": max_model_len,
            "vocab_size": vocab_size,
            "sees_main": sees_main,
            "learn_main": learn_main,
            "strict": strict,
        }
        """All arguments but the tokenizer."""
        self.prompts = PromptEncoder(tokenizer)
        self.max_seq_len = max_seq_len
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.sees_main = sees_main
        self.learn_main = learn_main
        self.strict = strict

    def encode(self, sample: Sample, counts: DataCounts) -> EncodedSample | None:
        """The tokens of a sample, or None if it has no supervised token (counted).

        Raises:
            DataError: names file, line and branch; with `strict` also for what would be cut or dropped.
        """
        counts.records += 1
        encoded = self._encode_turns(sample, counts) if sample.turns else self._encode_texts(sample, counts)
        if encoded is None or not encoded.branches:
            counts.dropped_records += 1
            return None
        return encoded

    def _encode_texts(self, sample: Sample, counts: DataCounts) -> EncodedSample | None:
        main = encode_main(self.tokenizer, sample.main)
        if not self._has_room(len(main)):
            self._lost(self._too_long(sample.where, len(main)), counts)
            return None
        # All in one call, which takes a fraction of the time of one call each.
        parts = encode_parts(
            self.tokenizer, [text for branch in sample.branches for text in (branch.prompt, branch.completion)]
        )
        encoded = [
            self._encode_branch(sample, place, main if self.sees_main else [], len(main), parts, counts)
            for place in range(len(sample.branches))
        ]
        return _encoded(sample, main, encoded)

    def _encode_turns(self, sample: Sample, counts: DataCounts) -> EncodedSample | None:
        """A conversation as main, whose branches are whole with it."""
        added = [branch.messages for branch in sample.branches]
        try:
            main, wholes = self.prompts.supervised_branches(sample.turns, added, tools=sample.tools)
        except RequestError as error:
            raise DataError(f"{sample.where}: {error}") from error
        if not self._has_room(len(main)):
            self._lost(self._too_long(sample.where, len(main)), counts)
            return None
        encoded = []
        for place, whole in enumerate(wholes):
            where = f'{sample.where}: "branches"[{place}]'
            ids, loss_mask = self._checked(whole, where, counts, unlearned=sum(map(_is_answer, sample.turns)))
            start = len(main) if self.sees_main else 0
            seen = ids[:start]
            encoded.append(self._finished(sample, place, ids[start:], loss_mask[start:], (seen, []), len(main), counts))
        return _encoded(sample, main, encoded)

    def _encode_branch(
        self,
        sample: Sample,
        place: int,
        seen: Sequence[int],
        main_tokens: int,
        parts: Mapping[str, list[int]],
        counts: DataCounts,
    ) -> EncodedBranch | None:
        branch, where = sample.branches[place], _place(sample, place)
        turns = self._turns(branch, bool(seen), where) if branch.turns else None
        own = turns[0] if turns else encode_branch(self.tokenizer, branch.main, has_main=bool(seen))
        own = own if self.sees_main else []
        before = main_tokens + len(own)
        if not self._has_room(before):
            self._lost(self._too_long(where, before), counts)
            counts.dropped_branches += 1
            return None
        if turns:
            ids, loss_mask = self._checked(turns[1], where, counts, unlearned=sum(map(_is_answer, branch.turns)))
            ids, loss_mask = ids[len(own) :], loss_mask[len(own) :]
        else:
            ids, loss_mask = self._branch(branch, parts, bool(seen or own), where, counts)
        return self._finished(sample, place, ids, loss_mask, (seen, own), before, counts)

    def _turns(self, branch: SampleBranch, has_main: bool, where: str) -> tuple[list[int], SupervisedIds]:
        """The turns before a branch, and all of it with them."""
        try:
            own, [whole] = self.prompts.supervised_branches(
                branch.turns, [branch.messages], tools=branch.tools, has_main=has_main
            )
        except RequestError as error:
            raise DataError(f"{where}: {error}") from error
        return own, whole

    def _finished(
        self,
        sample: Sample,
        place: int,
        ids: list[int],
        loss_mask: list[bool],
        before: tuple[Sequence[int], list[int]],
        tokens_before: int,
        counts: DataCounts,
    ) -> EncodedBranch | None:
        """A branch within the limits; `before` are the main that it sees, and its own."""
        (seen, own), where = before, _place(sample, place)
        self._check_vocabulary([*seen, *own, *ids], where)
        ids, loss_mask = self._cut(ids, loss_mask, tokens_before, where, counts)
        unpredicted = any(loss_mask[:1]) and not (seen or own)
        if unpredicted:
            loss_mask[0] = False
        if not any(loss_mask):
            self._lost(f"{where} has no supervised token, dropped", counts)
            counts.dropped_branches += 1
            return None
        counts.unpredicted_tokens += unpredicted
        own_mask = [self.learn_main] * len(own)
        if own and not seen:
            own_mask[0] = False  # nothing is before it
        return EncodedBranch(array("i", own + ids), bytes(own_mask + loss_mask), place + 1, sample.branches[place])

    def lost_rows(self, sample: PlannedSample, places: list[int], limit: int, counts: DataCounts) -> None:
        """Count the branches at these places, which do not fit a row beside their main."""
        for place in places:
            branch = sample.branches[place]
            self._lost(
                f'{sample.where}: "branches"[{branch.number - 1}] has {branch.tokens} tokens and does not fit beside a '
                f"main of {sample.main_tokens} in a row of {limit} (--max_total_tokens), dropped",
                counts,
            )
            counts.dropped_branches += 1
        if len(places) == len(sample.branches):
            counts.dropped_records += 1

    def _has_room(self, main_tokens: int) -> bool:
        return not self.max_model_len or self.max_model_len - main_tokens >= 2

    def _too_long(self, where: str, main_tokens: int) -> str:
        return f"{where}: main has {main_tokens} tokens, the model has {self.max_model_len} positions"

    def _check_vocabulary(self, ids: list[int], where: str) -> None:
        if self.vocab_size and (largest := max(ids, default=0)) >= self.vocab_size:
            raise DataError(
                f"{where}: the tokenizer gives token {largest}, the model has {self.vocab_size} tokens: they do "
                "not belong together; check --tokenizer_path."
            )

    def _cut(
        self, ids: list[int], loss_mask: list[bool], main_tokens: int, where: str, counts: DataCounts
    ) -> tuple[list[int], list[bool]]:
        room = self.max_model_len - main_tokens if self.max_model_len else self.max_seq_len
        limit = min(self.max_seq_len, room)
        if len(ids) > limit:
            kind = "--max_seq_len" if limit == self.max_seq_len else "the positions of the model"
            self._lost(f"{where} has {len(ids)} tokens, cut to {limit} ({kind})", counts)
            counts.cut_branches += 1
            counts.cut_tokens += len(ids) - limit
        return ids[:limit], loss_mask[:limit]

    def _branch(
        self, branch: SampleBranch, parts: Mapping[str, list[int]], has_main: bool, where: str, counts: DataCounts
    ) -> tuple[list[int], list[bool]]:
        if branch.messages:
            return self._conversation(branch, has_main, where, counts)
        first = branch.prompt or branch.completion
        start = parts[first] if has_main else encode_main(self.tokenizer, first)
        if branch.prompt:
            completion = closed(self.tokenizer, parts[branch.completion])
            return start + completion, [False] * len(start) + [True] * len(completion)
        ids = start + closed(self.tokenizer, [])
        begins = not has_main and ids[0] == self.tokenizer.bos_token_id
        return ids, [not begins] + [True] * (len(ids) - 1)

    def _conversation(
        self, branch: SampleBranch, has_main: bool, where: str, counts: DataCounts
    ) -> tuple[list[int], list[bool]]:
        try:
            found = self.prompts.supervised(branch.messages, has_main=has_main, tools=branch.tools)
        except RequestError as error:
            raise DataError(f"{where}: {error}") from error
        return self._checked(found, where, counts)

    def _checked(
        self, found: SupervisedIds, where: str, counts: DataCounts, *, unlearned: int = 0
    ) -> tuple[list[int], list[bool]]:
        """What is supervised of a conversation, and what is not counted; `unlearned` turns are not meant to be."""
        lost = found.lost
        if lost.turns and not any(found.loss_mask):
            raise DataError(
                f"{where}: the assistant's turns are not found in what the tokenizer's chat template renders; give a "
                'tokenizer with another template (--tokenizer_path), or the form {"prompt", "completion"}.'
            )
        counts.unlearned_turns += lost.weighted - unlearned
        counts.unanswered_turns += lost.behind
        counts.unwritten_turns += lost.turns + lost.calls
        counts.shortened_turns += lost.shortened
        counts.unwritten_tools += lost.tools
        for number, what in (
            (lost.turns, "turns of the assistant, which are not learned"),
            (lost.calls, "calls of tools, which are not learned"),
            (lost.shortened, "thoughts, or words beside a call"),
            (lost.tools, "tools"),
        ):
            if number:
                self._lost(f"{where}: the chat template does not write {number} {what}", counts)
        return found.ids, found.loss_mask

    def _lost(self, what: str, counts: DataCounts) -> None:
        if self.strict:
            raise DataError(f"{what}; --strict allows no loss: shorten the row, or raise the limit.")
        counts.note(what)


def _encoded(sample: Sample, main: Sequence[int], branches: Sequence[EncodedBranch | None]) -> EncodedSample:
    kept = tuple(branch for branch in branches if branch is not None)
    return EncodedSample(array("i", main), kept, sample.where, sample.loose, sample.main)


def _place(sample: Sample, place: int) -> str:
    return sample.where if sample.loose else f'{sample.where}: "branches"[{place}]'


def _is_answer(turn: Message) -> bool:
    return bool(turn["role"] == "assistant")
