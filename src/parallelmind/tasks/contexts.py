"""The context stage: a file of queries and a corpus, to a file of context rows, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from annotated_types import Ge

from parallelmind.errors import DataError, JobError
from parallelmind.io.atomic import replacing
from parallelmind.io.compression import STDIN, is_plain_file, open_plain
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.locks import is_locked
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.run import run_job
from parallelmind.jobs.statistics import Progress
from parallelmind.jobs.storage import job_folder, job_locks
from parallelmind.jobs.task import RecordWorker, Task, WorkerInfo, Write
from parallelmind.retrieval.compat import text_key
from parallelmind.retrieval.expansion import Expansion, expand_queries, load_query, remove_other_expansions
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.retriever import Retrieval
from parallelmind.retrieval.retriever_options import RetrieverOptions
from parallelmind.retrieval.statistics import ContextStatistics, collect_context_statistics
from parallelmind.settings.setting import Setting, Settings

_LOGGER = logging.getLogger(__name__)
_COPY = "queries.{}.input"


@dataclass(frozen=True, kw_only=True)
class ContextOptions(Settings):
    """Everything `parallelmind contexts` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range.
    """

    queries_file: Annotated[
        Path, Setting("the queries, JSON or JSONL (.gz, .zst; - is the standard input)", "files", identity=False)
    ]
    output_file: Annotated[Path, Setting("the contexts, JSONL; .gz or .zst compresses", "files", identity=False)]
    start_index: Annotated[int, Ge(0), Setting("skip the first N queries", "files")] = 0
    max_samples: Annotated[
        int | None, Ge(1), Setting("at most N queries after those", "files", default="all", identity=False)
    ] = None
    retry_failed: Annotated[bool, Setting("try the queries that failed before again", "files", identity=False)] = False
    overwrite: Annotated[
        bool, Setting("drop earlier results and start again (leave it out to continue)", "files", identity=False)
    ] = False
    retriever: RetrieverOptions

    @property
    def statistics_file(self) -> Path:
        return self.output_file.with_name(self.output_file.name + ".stats.json")

    def identity(self) -> dict[str, Any]:
        """The settings that make this another job when they differ."""
        return self.retriever.identity() | super().identity()


@dataclass(frozen=True, kw_only=True)
class ContextReport:
    """What a run came to."""

    options: ContextOptions
    """Those of the run, with the output that was written."""
    statistics: ContextStatistics
    resumed: int
    """Rows that earlier runs made."""
    failures: list[tuple[int, str]]
    """(place among the expanded rows, reason) of the first failed ones."""
    seconds: float
    """Of this run."""


class ContextTask(Task):
    """Finds contexts; a worker process opens the corpus for itself, and shares its indexes with the others."""

    kind = "contexts"
    noun = "rows"

    def __init__(self, options: ContextOptions, expansion: Expansion | None = None) -> None:
        """`expansion`: of the queries, a row each; None: another rank has it, which gives out the records."""
        self.options, self.out_path = options, options.output_file
        self.source = options.queries_file if _is_file(options.queries_file) else STDIN
        self.input_path = options.queries_file
        if expansion is not None:
            self.input_path = expansion.path
            if options.max_samples is not None:
                self.max_records = expansion.queries - expansion.duplicates

    def settings(self) -> Mapping[str, Any]:
        return self.options.identity()

    def defaults(self) -> Mapping[str, Any]:
        return self.options.identity_defaults()

    def moved(self, rows: bytes, line: int) -> bytes:
        return rows

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        return ContextWorker(self.options.retriever.make(), on_step=alive)

    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        return RecordResult.of([error_row(load_query(line.content), reason)], error_class=error_class)


def run_contexts(
    options: ContextOptions, *, progress: Progress | None = None, run: RunOptions | None = None
) -> ContextReport | None:
    """Find the context of every query that has none yet, and put the output in place.

    Of several ranks only the first one has a report.

    Raises:
        ParallelMindError: the queries, a setting, the corpus or the output is wrong; what was done is kept.
    """
    run = dataclasses.replace(run or RunOptions(), retry_failed=options.retry_failed, overwrite=options.overwrite)
    options.retriever.open_store().close()  # a wrong corpus path is told before anything is written
    if run.rank.rank:
        run_job(ContextTask(options), run)  # records come from the first rank
        return None
    queries = _plain(options.queries_file, job_folder(options.output_file))
    expansion = _expand(options, queries)
    while True:
        _LOGGER.info(
            "%d queries in %s, %d duplicates dropped", expansion.queries, options.queries_file, expansion.duplicates
        )
        if expansion.repeated_ids:
            _LOGGER.warning(
                "%d queries have the id of an earlier one, %r first; each keeps its place in the output, and its id",
                expansion.repeated_ids,
                expansion.repeated_id,
            )
        if not expansion.queries:
            _LOGGER.warning("%s has no queries in the part asked for: the output will be empty", options.queries_file)
        report = run_job(ContextTask(options, expansion), run, progress=progress)
        assert report is not None
        if _is_file(options.queries_file):
            queries = _plain(options.queries_file, job_folder(options.output_file))
        before, expansion = expansion, _expand(options, queries)
        if expansion == before:
            break
        if run.rank.world_size > 1:
            raise JobError(f"{options.queries_file} was edited while the job ran; start the same command again.")
        run = dataclasses.replace(run, overwrite=False)
    if not any(map(is_locked, job_locks(options.output_file))):  # another run may be reading one of them
        remove_other_expansions(expansion)
        for copy in queries.parent.glob(_COPY.format("*")):
            if copy != queries:
                copy.unlink(missing_ok=True)
    options = dataclasses.replace(options, output_file=report.out_path)
    statistics = collect_context_statistics(report.out_path, queries=expansion.queries, duplicates=expansion.duplicates)
    with replacing(options.statistics_file) as temporary:
        temporary.write_text(json.dumps(statistics.fields(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return ContextReport(
        options=options,
        statistics=statistics,
        resumed=report.resumed,
        failures=report.completion.failures,
        seconds=report.statistics.seconds,
    )


def _is_file(queries: Path) -> bool:
    return queries != STDIN and queries.is_file()


def _plain(queries: Path, folder: Path) -> Path:
    """The file itself; of what is compressed, or can be read only once, a copy, which other queries do not replace."""
    if is_plain_file(queries):
        return queries
    with open_plain(queries, folder) as source:
        digest = hashlib.file_digest(source, "blake2b").hexdigest()[:16]  # type: ignore[arg-type]
        source.seek(0)
        path = folder / _COPY.format(digest)
        with replacing(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
    return path


def _expand(options: ContextOptions, queries: Path) -> Expansion:
    return expand_queries(
        queries,
        job_folder(options.output_file),
        start_index=options.start_index,
        max_samples=options.max_samples,
        **({"key": text_key} if options.retriever.compat else {}),
    )


class RetrieverLike(Protocol):
    """What is asked of a retriever."""

    def retrieve(self, query: Query) -> Retrieval:
        """The context of a query; raises DataError if there is none."""

    def close(self) -> None: ...


class ContextWorker:
    """Works on expanded queries; `run` may be called for any share of them."""

    def __init__(self, retriever: RetrieverLike, *, on_step: Callable[[], None] = lambda: None) -> None:
        self._retriever = retriever
        self._on_step = on_step

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        """Hand the row of each query to `write`, in order."""
        for line in lines:
            write(line, self._result(load_query(line.content)))
            self._on_step()

    def close(self) -> None:
        self._retriever.close()

    def _result(self, query: Query) -> RecordResult:
        started = time.perf_counter()
        try:
            retrieval = self._retriever.retrieve(query)
        except DataError as error:
            seconds = time.perf_counter() - started
            # What is wrong with a query stays wrong; a version that the corpus lacks may be there the next time.
            row, kind = error_row(query, str(error), seconds), "QueryError" if query.error else "NotInCorpus"
            return RecordResult.of([row], final=query.error is not None, error_class=kind, seconds=seconds)
        seconds = time.perf_counter() - started
        return RecordResult.of([context_row(query, retrieval, seconds)], seconds=seconds)


def context_row(query: Query, retrieval: Retrieval, seconds: float) -> dict[str, Any]:
    """The output row of a query that was served."""
    context = retrieval.context
    row = query.fields() | {
        "retrieval_method": retrieval.method,
        "context": context.text,
        "context_length": len(context.text),
        "retrieval_time": round(seconds, 6),
        "success": True,
        "truncated": context.truncated,
        "documents": [document.fields() for document in context.documents],
    }
    if context.tokens is not None:
        row["context_tokens"] = context.tokens
    if retrieval.existence is not None:
        row["verdict"], row["evidence"] = retrieval.existence.verdict, retrieval.existence.evidence
    if retrieval.absence is not None:
        row["absent"] = retrieval.absence.fields()
    if retrieval.unserved:
        row["dependencies_not_in_corpus"] = sorted(retrieval.unserved)
    return row


def error_row(query: Query, error: str, seconds: float = 0.0) -> dict[str, Any]:
    """The output row of a query that was not."""
    return query.fields() | {
        "retrieval_method": None,
        "context": "",
        "context_length": 0,
        "retrieval_time": round(seconds, 6),
        "success": False,
        "error": error,
    }
