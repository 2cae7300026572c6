"""Training samples to token ids within the limits of length; what is cut or dropped is counted."""

from __future__ import annotations

import dataclasses
from array import array
from dataclasses import dataclass, field
from typing import Any

from parallelmind.data.chat import encode_chat
from parallelmind.data.encode import encode_branch, encode_completion, encode_main
from parallelmind.data.samples import Sample, SampleBranch
from parallelmind.errors import DataError

__all__ = ["DataCounts", "EncodedBranch", "EncodedSample", "SampleEncoder"]

_LISTED = 20


@dataclass(kw_only=True)
class DataCounts:
    """What one pass over the data held, and what of it was cut or dropped."""

    records: int = 0
    rows: int = 0
    """Packed rows."""
    branches: int = 0
    tokens: int = 0
    """Of the packed rows, main once a row."""
    supervised_tokens: int = 0
    """Tokens that are learned."""
    cut_branches: int = 0
    """Branches longer than the limit of one branch, shortened to it."""
    cut_tokens: int = 0
    dropped_branches: int = 0
    """Branches that do not fit a row, or of which nothing is left to learn."""
    dropped_records: int = 0
    """Records of which no branch is left."""
    notes: list[str] = field(default_factory=list)
    """The first of what was cut or dropped, by place in the data."""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def note(self, text: str) -> None:
        if len(self.notes) < _LISTED:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class EncodedBranch:
    """One branch: its tokens, and which of them are learned."""

    ids: array[int]
    learned: bytes
    number: int
    """Branch id under its main, from 1."""
    sample_branch: SampleBranch

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
        max_seq_len: tokens of one branch at most (main not counted); a longer one is cut at its end.
        max_model_len: positions of the model; main and each branch fit into it. 0: unknown.
        vocab_size: tokens of the model. 0: unknown.
        strict: whatever would be cut or dropped is an error instead.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_seq_len: int,
        max_model_len: int = 0,
        vocab_size: int = 0,
        strict: bool = False,
    ):
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.strict = strict

    def encode(self, sample: Sample, counts: DataCounts) -> EncodedSample | None:
        """The tokens of a sample, or None if nothing of it can be learned (counted).

        Raises:
            DataError: names file, line and branch; with `strict` also for what would be cut or dropped.
        """
        counts.records += 1
        main = encode_main(self.tokenizer, sample.main)
        room = self.max_model_len - len(main) if self.max_model_len else self.max_seq_len
        if room < 2:
            self._lost(
                f"{sample.where}: main has {len(main)} tokens, the model has {self.max_model_len} positions",
                counts,
            )
            counts.dropped_records += 1
            return None
        branches = []
        for place, branch in enumerate(sample.branches):
            where = sample.where if sample.loose else f'{sample.where}: "branches"[{place}]'
            ids, learned = self._branch(branch, bool(main), where)
            if self.vocab_size and (largest := max(max(ids, default=0), max(main, default=0))) >= self.vocab_size:
                raise DataError(
                    f"{where}: the tokenizer gives token {largest}, the model has {self.vocab_size} tokens: they do "
                    "not belong together; check --tokenizer_path."
                )
            limit = min(self.max_seq_len, room)
            if len(ids) > limit:
                kind = "--max_seq_len" if limit == self.max_seq_len else "the positions of the model"
                self._lost(f"{where} has {len(ids)} tokens, cut to {limit} ({kind})", counts)
                counts.cut_branches += 1
                counts.cut_tokens += len(ids) - limit
                ids, learned = ids[:limit], learned[:limit]
            # A branch's first token follows from nothing in its branch, so no position predicts it.
            if not any(learned[1:]):
                self._lost(f"{where} has no token to learn, dropped", counts)
                counts.dropped_branches += 1
                continue
            branches.append(EncodedBranch(array("i", ids), bytes(learned), place + 1, branch))
        if not branches:
            counts.dropped_records += 1
            return None
        return EncodedSample(array("i", main), tuple(branches), sample.where, sample.loose, sample.main)

    def lost_rows(self, sample: EncodedSample, places: list[int], limit: int, counts: DataCounts) -> None:
        """Count the branches at these places, which do not fit a row beside their main."""
        for place in places:
            branch = sample.branches[place]
            self._lost(
                f'{sample.where}: "branches"[{branch.number - 1}] has {len(branch)} tokens and does not fit beside a '
                f"main of {len(sample.main)} in a row of {limit} (--max_total_tokens), dropped",
                counts,
            )
            counts.dropped_branches += 1
        if len(places) == len(sample.branches):
            counts.dropped_records += 1

    def _branch(self, branch: SampleBranch, has_main: bool, where: str) -> tuple[list[int], list[bool]]:
        if branch.messages:
            return encode_chat(self.tokenizer, branch.messages, has_main=has_main, where=where)
        if branch.prompt:
            prompt = encode_branch(self.tokenizer, branch.prompt, has_main=has_main)
            completion = encode_completion(self.tokenizer, branch.completion)
            return prompt + completion, [False] * len(prompt) + [True] * len(completion)
        start = encode_branch(self.tokenizer, branch.completion, has_main=has_main)
        ids = start + encode_completion(self.tokenizer, "")
        return ids, [True] * len(ids)

    def _lost(self, what: str, counts: DataCounts) -> None:
        if self.strict:
            raise DataError(f"{what}; --strict allows no loss: shorten the row, or raise the limit.")
        counts.note(what)
