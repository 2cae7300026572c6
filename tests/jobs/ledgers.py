"""What tests ask the ledger of a job, as any reader of SQLite could."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


def ask(out: Path, question: str) -> list[tuple[Any, ...]]:
    """The rows that answer a question to the ledger of this output; none if there is no such table yet."""
    ledger = Path(f"{out}.job") / "ledger.sqlite"
    if not ledger.exists():
        return []
    try:
        with sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True) as reader:
            return reader.execute(question).fetchall()
    except sqlite3.OperationalError:
        return []


def stored_results(out: Path) -> int:
    """Results that would outlive a kill."""
    return sum(count for (count,) in ask(out, "SELECT count(*) FROM results"))
