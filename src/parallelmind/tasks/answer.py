"""The answer stage: a file of context rows through a model, to a file of answer rows, resumable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from parallelmind.answering.backends.adapter import UserBackend
from parallelmind.answering.backends.base import AnswerBackend, InferenceSettings
from parallelmind.answering.backends.loading import load_backend_class
from parallelmind.answering.backends.openai_compatible import OpenAICompatibleBackend
from parallelmind.answering.context_rows import answer_row, parse_context_row
from parallelmind.answering.prompt_template import PromptTemplate
from parallelmind.answering.prompts import Prompts
from parallelmind.answering.window import ContextWindow
from parallelmind.errors import ParallelMindError, SettingsError
from parallelmind.io.endpoint import find_endpoint
from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.run import JobReport, run_job
from parallelmind.jobs.statistics import Progress
from parallelmind.jobs.task import RecordWorker, Task, WorkerInfo
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.settings.sampling import SamplingSettings
from parallelmind.settings.setting import values_of
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.answer_workers import BackendAnswers, EngineAnswers, unreadable
from parallelmind.tasks.job_engine import PREFIX_CACHE_BYTES, spread_over

_SLACK_SECONDS = 60.0


class AnswerTask(Task):
    """Answers context rows."""

    kind = "answer"
    noun = "contexts"

    def __init__(self, options: AnswerOptions) -> None:
        self.options = options
        self.input_path, self.out_path = options.contexts_file, options.output_file
        self.max_records = options.max_samples
        self.group_of = context_of if options.uses_engine else None
        made_by = f"parallelmind contexts --queries_file … --corpus_path … --output_file {self.input_path}"
        self.input_hint = f"; {made_by} makes it"

    def settings(self) -> Mapping[str, Any]:
        return self.options.identity()

    def defaults(self) -> Mapping[str, Any]:
        return self.options.identity_defaults()

    def files(self) -> Mapping[str, str]:
        return self.options.file_prints()

    def moved(self, rows: bytes, line: int) -> bytes:
        return rows

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        options = self.options
        prompts = Prompts(PromptTemplate(options.prompt_template), system_role=not options.no_system_role)
        if options.uses_engine:
            return _engine_answers(options, prompts, worker, alive)
        return BackendAnswers(self._backend(worker), prompts, worker, alive=alive)

    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        try:
            row = parse_context_row(line)
        except ParallelMindError:
            return unreadable(line, reason, error_class, rank=None, final=False)
        failed = answer_row(row, error=reason, inference_time=0.0, worker_rank=None)
        return RecordResult.of([failed], error_class=error_class)

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
    run: RunOptions | None = None,
    worker_files: bool = True,
) -> JobReport | None:
    """Answer every row that has no answer yet, those that failed before included, and put the output in place.

    With `worker_files` the answers of each of several workers are also in a file of its own (`jobs/worker_files.py`).
    Of several ranks only the first one has a report.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    run = dataclasses.replace(
        run or RunOptions(),
        retry_failed=options.retry_failed,
        overwrite=options.overwrite,
        keep_larger=True,
        worker_files=worker_files,
    )
    PromptTemplate(options.prompt_template)  # what is wrong with these is told before anything is written
    if options.backend is not None:
        load_backend_class(options.backend)
    elif options.uses_http:
        find_endpoint(options.inference_type, base_url=options.base_url, api_key_env=options.api_key_env)
        if run.record_timeout:  # requests end by their own limits; a worker that waits for them does not hang
            longest = options.max_retry_seconds + options.timeout + _SLACK_SECONDS
            if options.rpm:
                longest += 60 * run.world_size / options.rpm
            run = dataclasses.replace(run, record_timeout=max(run.record_timeout, longest))
    return run_job(AnswerTask(options), run, progress=progress)


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
    from parallelmind.engine.engine import Engine

    try:
        engine = Engine.from_pretrained(
            lora_path=options.lora_path,
            **spread_over(options.model(), worker).loading(),
            max_running_branches=options.batch_size,
            prefix_cache_bytes=PREFIX_CACHE_BYTES,
            kv_cache_bytes=None if options.kv_cache_gb is None else int(options.kv_cache_gb * 2**30),
        )
    except SettingsError as error:  # here the flag has another name
        raise SettingsError(str(error).replace("--base_model", "--model_path")) from error
    encoder = PromptEncoder(engine.tokenizer)
    # The few tokenizers that are not of the tokenizers library cannot tell where tokens end: then another one's tell.
    tokenizer = getattr(engine.tokenizer, "backend_tokenizer", None) or load_tokenizer("tiny")
    window = ContextWindow(
        lambda row: encoder.split(prompts.split(row, encoder.slots)),
        TokenBudget(tokenizer),
        tokens=engine.max_model_len,
    )
    return EngineAnswers(
        engine,
        window,
        options,
        worker,
        one_each=engine.patched,
        alive=alive,
    )
