"""The files that the documents' commands read, under the names they use there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.docs.blocks import ROOT

STORY = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue. Tina counted 36 coins.\n"
QUESTIONS = {"How old is Dan?": " 26", "How much does the hat cost?": " 91", "What does Emma like?": " blue"}
ASSETS = ROOT / "src" / "parallelmind" / "assets"


def lay_out(folder: Path) -> None:
    """Write them all, but for contexts.jsonl and the adapter, which take a run to make."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [{"prompt": question, "completion": answer} for question, answer in QUESTIONS.items()]
    _lines(folder / "records.jsonl", [{"main": STORY, "branches": list(QUESTIONS)[:2]}] * 3)
    _lines(folder / "train.jsonl", [{"main": STORY, "branches": pairs}] * 8)
    _lines(folder / "held_out.jsonl", [{"main": STORY, "branches": pairs[1:]}] * 2)
    _lines(folder / "sft_data.jsonl", [_conversation(question, answer) for question, answer in QUESTIONS.items()] * 4)
    _lines(folder / "requests.jsonl", [_batch_request(f"r{number}", question)
                                       for number, question in enumerate(QUESTIONS)])  # fmt: skip
    (folder / "dataset").mkdir()
    shutil.copy(folder / "sft_data.jsonl", folder / "dataset")
    (folder / "story.txt").write_text(STORY, encoding="utf-8")
    shutil.copy(ASSETS / "rag" / "queries.json", folder)
    shutil.copytree(ASSETS / "rag" / "corpus", folder / "corpora")


def _conversation(question: str, answer: str) -> dict[str, object]:
    turns = [{"role": "system", "content": STORY}, {"role": "user", "content": question}]
    return {"conversations": [*turns, {"role": "assistant", "content": answer}]}


def _batch_request(name: str, question: str) -> dict[str, object]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": STORY + question}], "max_tokens": 8}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
