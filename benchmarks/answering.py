"""Answering questions that share documents: rows with one context as branches of one main, against the same engine
without grouping, timed in the same run.

    python benchmarks/answering.py --save

512 rows ask about 16 documents, in random order in the file. "grouped" is what `parallelmind answer` does: rows are
worked on document by document, and those of one document are branches of one request. "ungrouped" takes them in file
order, each a request of its own; once with the engine's prefix cache, and once without, which is what an engine that
does not keep main between requests does. The model is random; all answers have the same length.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As the command line does: see parallelmind.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from decoding import VOCABULARY, NoTokenizer, random_model
from machine import describe, save

from parallelmind import Engine
from parallelmind.answering.window import ContextWindow
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import run_job
from parallelmind.jobs.task import GroupOf, RecordWorker, WorkerInfo
from parallelmind.models.cpu.optimize import optimize_for_cpu
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.tasks.answer import AnswerTask, context_of
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.answer_workers import EngineAnswers


def write_rows(path: Path, rows: int, documents: int) -> None:
    """Questions on documents drawn at random; every document is asked about."""
    chance = random.Random(0)
    asked = [number % documents for number in range(rows)]
    chance.shuffle(asked)
    with path.open("w", encoding="utf-8") as file:
        for number, document in enumerate(asked):
            row = {"id": number, "query": str(number), "context": f"document {document}"}
            file.write(json.dumps(row) + "\n")


def token_ids(text: str, length: int) -> list[int]:
    """The same tokens for the same text."""
    chance = random.Random(text)
    return [chance.randrange(VOCABULARY) for _ in range(length)]


class Answering(AnswerTask):
    """Answers with an engine that is there already."""

    def __init__(self, options: AnswerOptions, worker: RecordWorker, group_of: GroupOf | None) -> None:
        super().__init__(options)
        self.worker, self.group_of = worker, group_of

    def settings(self) -> dict[str, Any]:
        return {}

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        return self.worker


def answer(model: Any, data: Path, args: argparse.Namespace, *, grouped: bool, prefix_cache: bool) -> float:
    """Seconds from the first row to the merged output."""
    options = AnswerOptions(
        contexts_file=data,
        output_file=data.with_name("answers.jsonl"),
        model_path="random",
        temperature=0.0,
        max_new_tokens=args.new_tokens,
        batch_size=args.batch_size,
        overwrite=True,
    )
    engine = Engine(
        model,
        NoTokenizer(),
        max_running_branches=args.batch_size,
        prefix_cache_bytes=2**29 if prefix_cache else 0,
    )
    window = ContextWindow(
        lambda row: (token_ids(row.context, args.document_tokens), token_ids(row.query, 8)),
        TokenBudget(load_tokenizer("tiny")),  # nothing is cut
        tokens=engine.max_model_len,
    )
    worker = EngineAnswers(
        engine,
        window,
        options,
        WorkerInfo(),
        one_each=not grouped,
        alive=lambda: None,
    )
    began = time.perf_counter()
    report = run_job(Answering(options, worker, context_of if grouped else None), RunOptions(overwrite=True))
    assert report
    completion = report.completion
    seconds = time.perf_counter() - began
    assert (completion.answered, completion.failed) == (args.rows, 0)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="25m")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--document_tokens", type=int, default=1024)
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    print(describe())
    model = random_model(args.shape, torch.float32)
    optimize_for_cpu(model)
    rows = ["| run | seconds | answers/s | grouped is faster by |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "contexts.jsonl"
        write_rows(data, args.rows, args.documents)
        reference = 0.0
        for name, grouped, prefix_cache in (
            ("grouped", True, True),
            ("ungrouped, prefix cache", False, True),
            ("ungrouped, no prefix cache", False, False),
        ):
            seconds = answer(model, data, args, grouped=grouped, prefix_cache=prefix_cache)
            reference = reference or seconds
            rows.append(f"| {name} | {seconds:.1f} | {args.rows / seconds:.1f} | {seconds / reference:.2f}× |")
            print(rows[-1], flush=True)
    if args.save:
        notes = (
            f"\n{args.rows} rows over {args.documents} documents of {args.document_tokens} tokens, questions of 8, "
            f"answers of {args.new_tokens}; random model {args.shape}, float32, {args.batch_size} branches at once.\n"
        )
        print(save("answering", "Answering over shared documents", "\n".join(rows), notes))


if __name__ == "__main__":
    main()
