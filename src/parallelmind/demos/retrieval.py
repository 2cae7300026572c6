"""The demo of answering from documentation: bundled queries over two versions of numpy, and the bundled model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.jobs.statistics import Progress
from parallelmind.retrieval.retriever import RetrieverSettings
from parallelmind.retrieval.retriever_options import RetrieverOptions
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.contexts import ContextOptions
from parallelmind.tasks.pipeline import PipelineFiles, PipelineReport, run_pipeline

ASSETS = Path(__file__).parents[1] / "assets" / "rag"


@dataclass(frozen=True)
class RagDemo:
    """The results of the demo."""

    report: PipelineReport
    versions: list[str]
    questions: list[dict[str, Any]]
    """Each with its `query`, `target_api` and the context `rows` by version; those that differ most in method first."""


def run_demo_rag(folder: Path, progress: Callable[[], Progress]) -> RagDemo:
    """Run the pipeline from the beginning."""
    files = PipelineFiles(folder)
    contexts = ContextOptions(
        queries_file=ASSETS / "queries.json",
        output_file=files.contexts,
        # The package may be in a folder that cannot be written.
        retriever=RetrieverOptions(
            corpus_path=ASSETS / "corpus", index_path=folder / "index", settings=RetrieverSettings(max_tokens=300)
        ),
        overwrite=True,
    )
    answers = AnswerOptions(
        contexts_file=files.contexts,
        output_file=files.answers,
        model_path="tiny",
        temperature=0.0,
        # The bundled model has nothing to say about packages, and would end each answer at once.
        ignore_eos=True,
        max_new_tokens=16,
        dtype="float32",
        overwrite=True,
    )
    report = run_pipeline(contexts, answers, files, progress=progress)
    assert report is not None  # the only rank
    rows = [json.loads(line) for line in files.contexts.read_text(encoding="utf-8").splitlines()]
    versions = sorted({_version(row) for row in rows})
    by_question: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["query"], row["target_api"]
        question = by_question.setdefault(key, {"query": key[0], "target_api": key[1], "rows": {}})
        question["rows"][_version(row)] = row
    questions = sorted(by_question.values(), key=lambda question: len(_methods(question)), reverse=True)
    return RagDemo(report, versions, questions)


def _version(row: dict[str, Any]) -> str:
    return ", ".join(f"{package} {version}" for package, version in row["dependencies"].items())


def _methods(question: dict[str, Any]) -> set[str]:
    return {row["retrieval_method"] for row in question["rows"].values()}
