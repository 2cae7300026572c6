"""What the tests of the answer stage share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import JobReport
from parallelmind.jobs.statistics import Silent
from parallelmind.tasks.answer import run_answer
from parallelmind.tasks.answer_options import AnswerOptions

PLAIN = "default: {system: '', context: '{context}', question: '{query}', answer: ''}\n"
"""The template for the bundled model, which knows stories and questions and no chat."""
NAMES = ("Dan", "Rosa", "Omar", "Emma")


def story(number: int) -> str:
    facts = [f"The age of {name} is {20 + 7 * number + place}." for place, name in enumerate(NAMES)]
    return f"Story: {' '.join(facts)} The hat costs 91 dollars.\n"


def story_rows(stories: int = 4) -> list[dict[str, Any]]:
    """Rows whose contexts alternate, so that rows with the same context are never neighbours."""
    return [
        context_row(f"{name} {number}", f"How old is {name}?", story(number))
        for name in NAMES
        for number in range(stories)
    ]


def context_row(id: str | int, query: str, context: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": id,
        "original_item_id": str(id),
        "query_index": 0,
        "dedup_key": f"key {id}",
        "query": query,
        "target_api": "numpy.add",
        "dependencies": {"numpy": "1.16.6"},
        "retrieval_method": "exact_api_match",
        "context": context,
        "context_length": len(context),
        "retrieval_time": 0.25,
        "success": True,
    }
    return row | changes


def write_rows(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def answer(data: Path, out: Path, *, workers: int = 0, run: dict[str, Any] | None = None, **options: Any) -> JobReport:
    """Answer the rows of `data`."""
    report = run_answer(
        AnswerOptions(**{"contexts_file": data, "output_file": out, "model_path": "tiny"} | options),
        progress=Silent(),
        run=RunOptions(workers=workers, **(run or {})),
    )
    assert report is not None
    return report


def everything_written(folder: Path) -> bytes:
    """The bytes of all files under a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
