"""The demo: bundled records through the batch job, against the same model one branch at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parallelmind.engine.request import Event, Request
from parallelmind.jobs.statistics import Progress
from parallelmind.models.loader import load_model_with_lora
from parallelmind.prompts.encode import encode_branch, encode_main
from parallelmind.settings.model import TINY_MODEL
from parallelmind.tasks.batch import BatchReport, run_batch
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.tasks.batch_worker import Backend, load_backend


@dataclass(frozen=True)
class DemoRecord:
    """A bundled record with the right answers."""

    main: str
    branches: list[str]
    answers: list[str]


@dataclass(frozen=True)
class DemoResult:
    """Parallel and one by one, over the same records."""

    records: int
    branches: int
    exact: int
    """Branches whose answer is the right one."""
    identical: int
    """Branches with the same answer both ways."""
    tokens: int
    parallel_seconds: float
    one_by_one_seconds: float


def demo_records_path() -> Path:
    """The bundled record file."""
    return Path(__file__).parents[1] / "assets" / "demo_records.jsonl"


def read_demo_records() -> list[DemoRecord]:
    """The bundled records."""
    lines = demo_records_path().read_text(encoding="utf-8").splitlines()
    return [DemoRecord(row["main"], row["branches"], row["answers"]) for row in map(json.loads, lines)]


class ParallelDemo:
    """The batch job on the bundled records, and one of them streamed."""

    def __init__(self, out_path: Path):
        self.options = BatchOptions(
            base_model=TINY_MODEL,
            data_path=demo_records_path(),
            out_path=out_path,
            branches_per_sample=8,
            batch_size=64,
            max_new_tokens=16,
            temperature=0.0,
            dtype="float32",
            overwrite=True,
        )
        self._backend: Backend = load_backend(self.options)

    def run(self, progress: Progress) -> BatchReport:
        """What `parallelmind batch` does."""
        report = run_batch(self.options, progress=progress, load=lambda _: self._backend)
        assert report is not None  # the only rank
        return report

    def stream(self, record: DemoRecord) -> Iterator[Event]:
        """Text of all branches of a record as it is generated."""
        request = Request(main=record.main, branches=record.branches)
        return self._backend.engine.stream([request], self.options.sampling(seed=None))

    def outputs(self) -> dict[tuple[int, int], str]:
        """The answers in the output file by (record, branch)."""
        with self.options.out_path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return {(row["line"] - 1, row["branch"]): row["output"] for row in rows}


class OneByOne:
    """The same branches the usual way: transformers' `generate` on main + branch, one after the other."""

    def __init__(self, options: BatchOptions):
        loaded = load_model_with_lora(options.base_model, patch_rope=False, device=options.device, dtype=options.dtype)
        self._model, self._tokenizer, _ = loaded
        self._max_new_tokens = options.max_new_tokens
        self.seconds = 0.0

    @torch.inference_mode()
    def answer(self, main: str, branch: str) -> str:
        """The greedy answer of one branch."""
        ids = encode_main(self._tokenizer, main) + encode_branch(self._tokenizer, branch, has_main=bool(main))
        started = time.perf_counter()
        inputs: Any = torch.tensor([ids], device=self._model.device)
        output = self._model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )[0, len(ids) :]
        self.seconds += time.perf_counter() - started
        text: str = self._tokenizer.decode(output, skip_special_tokens=True)
        return text


def compare(
    records: list[DemoRecord], outputs: dict[tuple[int, int], str], report: BatchReport, one_by_one: OneByOne
) -> DemoResult:
    """Answer every branch one by one, and compare both ways with each other and with the right answers."""
    exact = identical = branches = 0
    for index, record in enumerate(records):
        for place, (branch, answer) in enumerate(zip(record.branches, record.answers, strict=True)):
            output = outputs[index, place]
            exact += output.strip() == answer
            identical += output == one_by_one.answer(record.main, branch)
            branches += 1
    return DemoResult(
        records=len(records),
        branches=branches,
        exact=exact,
        identical=identical,
        tokens=report.generated_tokens,
        parallel_seconds=report.seconds,
        one_by_one_seconds=one_by_one.seconds,
    )
