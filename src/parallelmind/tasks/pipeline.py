"""Both stages of answering from documentation, one after the other, each a job that resumes by itself."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parallelmind.errors import JobError
from parallelmind.io.atomic import replacing
from parallelmind.jobs.job import job_folder
from parallelmind.jobs.progress import Progress
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.jobs.run import JobReport, RunOptions
from parallelmind.jobs.spec import load_job_file
from parallelmind.tasks.answer import run_answer
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.contexts import ContextOptions, ContextReport, run_contexts

_POLL_SECONDS = 0.2
_FIRST_STAGE_SECONDS = 60.0


@dataclass(frozen=True)
class PipelineFiles:
    """What a pipeline writes, in one folder."""

    folder: Path

    @property
    def contexts(self) -> Path:
        return self.folder / "contexts.jsonl"

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def statistics(self) -> Path:
        return self.folder / "statistics.json"


@dataclass(frozen=True)
class PipelineReport:
    """What both stages came to."""

    contexts: ContextReport
    answers: JobReport
    statistics: Path
    """The file with the numbers of both."""


def run_pipeline(
    contexts: ContextOptions,
    answers: AnswerOptions,
    files: PipelineFiles,
    *,
    progress: Callable[[], Progress],
    rank: Rank = SINGLE,
    run: RunOptions | None = None,
) -> PipelineReport | None:
    """Find the contexts that are missing, then give the answers that are missing.

    `progress` makes what shows one stage. Of several ranks only the first one has a report. `most_per_worker` is about
    the answers.

    Raises:
        ParallelMindError: something is wrong; what was done in either stage is kept.
    """
    written = [files.contexts]
    everywhere = None if run is None else dataclasses.replace(run, most_per_worker=None)
    found = run_contexts(contexts, progress=progress(), rank=rank, run=everywhere, placed=written.append)
    if rank.rank:
        _wait_for_contexts(written[-1])
    answers = dataclasses.replace(answers, contexts_file=written[-1])
    answered = run_answer(answers, progress=progress(), rank=rank, run=run)
    if found is None or answered is None:
        return None
    statistics = {"contexts": found.statistics.fields(), "answers": answered.statistics.as_json()}
    number = answered.out_path.stem.removeprefix(files.answers.stem)  # "_2", if other answers stand there
    path = files.statistics.with_stem(files.statistics.stem + number)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(statistics, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return PipelineReport(found, answered, path)


def _wait_for_contexts(contexts: Path) -> None:
    """The other ranks leave the first stage a moment before its output is in place."""
    until = time.monotonic() + _FIRST_STAGE_SECONDS
    while True:
        stored = load_job_file(job_folder(contexts) / "job.json")
        if stored is not None and stored[1] is not None and contexts.exists():
            return
        if time.monotonic() > until:
            raise JobError(f"{contexts} did not appear; the log of rank 0 says why.")
        time.sleep(_POLL_SECONDS)
