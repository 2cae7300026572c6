"""Both stages of answering from documentation, one after the other, each a job that resumes by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parallelmind.io.atomic import replacing
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import JobReport
from parallelmind.jobs.statistics import Progress
from parallelmind.tasks.answer import run_answer
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.contexts import ContextOptions, ContextReport, run_contexts


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
    run: RunOptions | None = None,
) -> PipelineReport | None:
    """Find the contexts that are missing, then give the answers that are missing.

    `progress` makes what shows one stage. Of several ranks only the first one has a report. `most_per_worker` is about
    the answers.

    Raises:
        ParallelMindError: something is wrong; what was done in either stage is kept.
    """
    everywhere = None if run is None else dataclasses.replace(run, most_per_worker=None)
    found = run_contexts(contexts, progress=progress(), run=everywhere)
    if found is not None:  # else records come from the first rank
        answers = dataclasses.replace(answers, contexts_file=found.options.output_file)
    answered = run_answer(answers, progress=progress(), run=run)
    if found is None or answered is None:
        return None
    statistics = {"contexts": found.statistics.fields(), "answers": answered.statistics.as_json()}
    number = answered.out_path.stem.removeprefix(files.answers.stem)  # "_2", if other answers stand there
    path = files.statistics.with_stem(files.statistics.stem + number)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(statistics, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return PipelineReport(found, answered, path)
