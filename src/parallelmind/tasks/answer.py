"""The answer stage: a file of context rows through a model, to a file of answer rows, resumable."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from parallelmind.answering.backends.adapter import UserBackend
from parallelmind.answering.backends.base import AnswerBackend, InferenceSettings
from parallelmind.answering.backends.loading import load_backend_class
from parallelmind.answering.backends.openai_compatible import OpenAICompatibleBackend
from parallelmind.answering.chat_format import ChatFormat
from parallelmind.answering.context_rows import answer_row, parse_context_row
from parallelmind.answering.prompt_pieces import PieceEncoder
from parallelmind.answering.prompt_template import PromptTemplate
from parallelmind.answering.prompts import Prompts
from parallelmind.answering.window import ContextWindow
from parallelmind.errors import ParallelMindError, SettingsError
from parallelmind.io.endpoint import find_endpoint
from parallelmind.jobs.job import Job, WorkItem
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.progress import Progress
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.jobs.run import JobReport, RunOptions, run_job
from parallelmind.jobs.task import RecordWorker, WorkerInfo
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.settings.sampling import SamplingSettings
from parallelmind.settings.setting import values_of
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.answer_workers import BackendAnswers, EngineAnswers, unreadable
from parallelmind.tasks.job_engine import PREFIX_CACHE_BYTES, spread_over
from parallelmind.tasks.rank_files import check_rank_files, write_rank_files

_LOGGER = logging.getLogger(__name__)
_SLACK_SECONDS = 60.0


@dataclass(frozen=True)
class AnswerTask:
    """Answers context rows."""

    options: AnswerOptions

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        options = self.options
        prompts = Prompts(PromptTemplate(options.prompt_template), system_role=not options.no_system_role)
        if options.uses_engine:
            return _engine_answers(options, prompts, worker, alive)
        return BackendAnswers(self._backend(worker), prompts, worker, alive=alive)

    def failure(self, item: WorkItem, reason: str, error_class: str) -> Outcome:
        try:
            row = parse_context_row(item.line)
        except ParallelMindError:
            return unreadable(item, reason, error_class, rank=None, final=False)
        failed = answer_row(row, error=reason, inference_time=0.0, worker_rank=None)
        return Outcome.of([failed], error_class=error_class)

    def _backend(self, worker: WorkerInfo) -> AnswerBackend:
        options = self.options
        if options.backend is not None:
            settings = InferenceSettings(model_path=options.model_path, **values_of(SamplingSettings, options))
            return UserBackend(load_backend_class(options.backend), settings)
        endpoint = find_endpoint(options.inference_type, base_url=options.base_url, api_key_env=options.api_key_env)
        return OpenAICompatibleBackend(endpoint, options.http(world_size=worker.world_size))


def run_answer(
    options: AnswerOptions,
    *,
    progress: Progress | None = None,
    rank: Rank = SINGLE,
    run: RunOptions | None = None,
    rank_files: bool = True,
) -> JobReport | None:
    """Answer every row that has no answer yet, those that failed before included, and put the output in place.

    With `rank_files` the answers of each of several workers are also in a file of its own (`tasks/rank_files.py`).
    Of several ranks only the first one has a report.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    run = run or RunOptions()
    PromptTemplate(options.prompt_template)  # what is wrong with these is told before anything is written
    if options.backend is not None:
        load_backend_class(options.backend)
    elif options.uses_http:
        find_endpoint(options.inference_type, base_url=options.base_url, api_key_env=options.api_key_env)
        if run.record_timeout:  # requests end by their own limits; a worker that waits for them does not hang
            longest = options.max_retry_seconds + options.timeout + _SLACK_SECONDS
            if options.rpm:
                longest += 60 * max(1, run.workers, rank.world_size) / options.rpm
            run = dataclasses.replace(run, record_timeout=max(run.record_timeout, longest))
    world_size = max(1, run.workers, rank.world_size)

    def on_open(opened: Job) -> None:
        if rank_files:
            check_rank_files(opened.shown_path, world_size=world_size, overwrite=options.overwrite)
        _log_input(opened, options)

    job = Job(
        kind="answer",
        input_path=options.contexts_file,
        out_path=options.output_file,
        settings=options.identity(),
        files=options.file_prints(),
        max_records=options.max_samples,
        retry_failed=options.retry_failed,
        overwrite=options.overwrite,
        group_of=context_of if options.uses_engine else None,
        keep_larger=True,
        input_from=(
            f"; parallelmind contexts --queries_file … --corpus_path … --output_file {options.contexts_file} makes it"
        ),
    )
    report = run_job(
        job,
        AnswerTask(options),
        options=run,
        rank=rank,
        progress=progress,
        on_open=on_open,
    )
    if rank_files and report is not None:
        write_rank_files(report.out_path, report)
    return report


def context_of(line: bytes) -> bytes:
    """What makes two rows neighbours; lines that are no rows stand together."""
    try:
        row = json.loads(line)
        return str(row.get("context")).encode("utf-8", "replace")
    except (ValueError, AttributeError, RecursionError):
        return b""


def _engine_answers(
    options: AnswerOptions, prompts: Prompts, worker: WorkerInfo, alive: Callable[[], None]
) -> EngineAnswers:
    from parallelmind.engine.loading import load_engine

    try:
        engine, loaded = load_engine(
            spread_over(options.model(), worker),
            options.lora_path,
            visibility="isolated",
            max_running_branches=options.batch_size,
            prefix_cache_bytes=PREFIX_CACHE_BYTES,
            kv_cache_bytes=None if options.kv_cache_gb is None else int(options.kv_cache_gb * 2**30),
        )
    except SettingsError as error:  # here the flag has another name
        raise SettingsError(str(error).replace("--base_model", "--model_path")) from error
    chat, encode = ChatFormat(loaded.tokenizer), PieceEncoder(loaded.tokenizer)
    # The few tokenizers that are not of the tokenizers library cannot tell where tokens end: then another one's tell.
    tokenizer = getattr(loaded.tokenizer, "backend_tokenizer", None) or load_tokenizer("tiny")
    window = ContextWindow(
        lambda row: encode(prompts.split(row, chat)), TokenBudget(tokenizer), tokens=engine.max_model_len
    )
    return EngineAnswers(
        engine,
        window,
        options,
        worker,
        one_each=loaded.patch_rope,
        alive=alive,
    )


def _log_input(job: Job, options: AnswerOptions) -> None:
    blank = f" (blank lines skipped: {job.input.blank_lines})" if job.input.blank_lines else ""
    _LOGGER.info("loaded %d contexts from %s%s", job.input.records, options.contexts_file, blank)
    if job.completion:
        _LOGGER.info("%s is complete already: nothing to do (--overwrite begins anew)", job.shown_path)
    elif job.resumed:
        left = job.input.records - job.resumed
        _LOGGER.info("continuing: %d of %d contexts have answers, %d to do", job.resumed, job.input.records, left)
