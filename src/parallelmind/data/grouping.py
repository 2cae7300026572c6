"""Which samples stand together in one record.

Samples with the same main become branches of one record, also when others lie between them. What has no main, or a main
that no other sample had, has nothing in common with its neighbours: such samples fill records together, each with its
main in its own branch, so that it is read as it would be alone.

Records stay open until they are full, the data ends, or too much waits, and then the oldest is closed. So memory has
a limit, whatever the size of the data, and the order follows from the data alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from parallelmind.data.sft_forms import Branch, BranchSample, Main

GroupBy = Literal["all", "main", "none"]


@dataclass(frozen=True, kw_only=True)
class GroupingLimits:
    """What may be held in memory, and how large a record may become."""

    waiting_samples: int = 10_000
    waiting_characters: int = 64 * 2**20
    record_characters: int = 8 * 2**20
    """A character has up to six bytes in JSON: a record of more than one branch stays a line that can be read back."""


@dataclass(frozen=True, slots=True)
class Group:
    """The content of one record."""

    main: Main
    branches: list[Branch]


@dataclass(slots=True)
class _Open:
    samples: list[BranchSample]
    characters: int


class Grouping:
    """Takes samples one by one and gives records back as soon as they are complete.

    Args:
        group_by: all: samples with the same main share a record, the others fill records together; main: only samples
            with the same main share a record; none: every sample is a record.
        most: branches of a record at most; 1 is the same as `none`.
    """

    def __init__(self, group_by: GroupBy, most: int, limits: GroupingLimits | None = None) -> None:
        self._group_by = "none" if most == 1 else group_by
        self._limits = limits or GroupingLimits()
        self._most = min(most, self._limits.waiting_samples)
        self._open: dict[str, _Open] = {}
        """By `_key` of their main."""
        self._samples = self._characters = 0
        self._filler = _Open([], 0)

    def add(self, sample: BranchSample) -> Iterator[Group]:
        """Yield the records that are complete now."""
        if self._group_by == "none":
            yield Group(sample.main, [sample.branch])
        elif not sample.main:
            yield from self._fill(sample)
        else:
            yield from self._join(sample)
            while self._too_much_waits():
                yield from self._close(next(iter(self._open)))

    def rest(self) -> Iterator[Group]:
        """Yield the records that still wait for branches."""
        while self._open:
            yield from self._close(next(iter(self._open)))
        yield from self._flush()

    def _too_much_waits(self) -> bool:
        return self._samples > self._limits.waiting_samples or self._characters > self._limits.waiting_characters

    def _join(self, sample: BranchSample) -> Iterator[Group]:
        """Add a sample to the others with its main."""
        size, key = len(str(sample.branch)), _key(sample.main)
        group = self._open.get(key)
        if group is not None and group.characters + size > self._limits.record_characters:
            yield from self._close(key)
            group = None
        if group is None:
            group = self._open[key] = _Open([], len(key))
            self._characters += len(key)
        group.samples.append(sample)
        group.characters += size
        self._samples += 1
        self._characters += size
        if len(group.samples) == self._most:
            yield from self._close(key)

    def _close(self, key: str) -> Iterator[Group]:
        group = self._open.pop(key)
        self._samples -= len(group.samples)
        self._characters -= group.characters
        if len(group.samples) == 1:
            yield from self._fill(group.samples[0])
        else:
            yield Group(group.samples[0].main, [sample.branch for sample in group.samples])

    def _fill(self, sample: BranchSample) -> Iterator[Group]:
        """Add a sample to others that have nothing in common with it."""
        if self._group_by != "all" or (sample.main and _has_main(sample.branch)):
            yield Group(sample.main, [sample.branch])
            return
        size = len(_key(sample.main)) + len(str(sample.branch))
        if self._filler.characters + size > self._limits.record_characters:
            yield from self._flush()
        self._filler.samples.append(sample)
        self._filler.characters += size
        if len(self._filler.samples) == self._most:
            yield from self._flush()

    def _flush(self) -> Iterator[Group]:
        samples, self._filler = self._filler.samples, _Open([], 0)
        if len(samples) == 1:
            yield Group(samples[0].main, [samples[0].branch])
        elif samples:
            yield Group("", [_with_main(sample) for sample in samples])


def _has_main(branch: Branch) -> bool:
    return isinstance(branch, dict) and "main" in branch


def _key(main: Main) -> str:
    """Equal for equal mains; no text begins as a conversation's does."""
    return main if isinstance(main, str) else "\x00" + json.dumps(main, ensure_ascii=False)


def _with_main(sample: BranchSample) -> Branch:
    if not sample.main:
        return sample.branch
    branch: dict[str, Any] = (
        {"prompt": "", "completion": sample.branch} if isinstance(sample.branch, str) else sample.branch
    )
    return {"main": sample.main, **branch}
