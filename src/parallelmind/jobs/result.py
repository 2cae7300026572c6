"""What a record comes to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""One output row; one with an `error` that is not null makes its record a failed one."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


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
