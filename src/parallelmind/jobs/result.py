"""What a record comes to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""One output row; one with an `error` that is not null makes its record a failed one."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is counted of each record and summed over those of a worker and of a job.

    A new count is a field here and one of `RecordResult`, and what a task's worker gives for it: ledger, statistics,
    `parallelmind job` and Prometheus then have it, which shows the words that stand with it here.
    """

    tokens_in: int = field(default=0, metadata={"help": "Tokens read"})
    tokens_out: int = field(default=0, metadata={"help": "Tokens written"})
    retries: int = field(default=0, metadata={"help": "Requests tried again"})


COUNTS = {one.name: str(one.metadata["help"]) for one in fields(Counts)}
"""The names of what is counted, and what each is."""
OTHER_COUNTS = {name: text for name, text in COUNTS.items() if name not in ("tokens_in", "tokens_out")}
"""Those besides the tokens, which are shown as a pair."""


class RecordResult(NamedTuple):
    """The output rows of a record, and what it took to make them."""

    payload: bytes
    """The rows as they stand in the output, each with a line end."""
    rows: int
    failed_rows: int = 0
    final: bool = False
    """A failure that trying again cannot change, such as one that came with the input."""
    error_class: str = ""
    """Short name of the kind of failure, for the statistics; "" without one."""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    """From the start of the work on the record to its end."""
    retries: int = 0

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        *,
        final: bool = False,
        error_class: str = "",
        tokens_in: int = 0,
        tokens_out: int = 0,
        seconds: float = 0.0,
        retries: int = 0,
    ) -> RecordResult:
        """The result with these output rows."""
        failed = 0
        for row in rows:
            failed += row.get("error") is not None
        # What a server or an exception said may hold half a surrogate pair; then it stands there as JSON's own escape.
        return cls(
            payload="".join([_encode(row) + "\n" for row in rows]).encode("utf-8", "backslashreplace"),
            rows=len(rows),
            failed_rows=failed,
            final=final,
            error_class=(error_class or "Error") if failed else "",
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            seconds=seconds,
            retries=retries,
        )
