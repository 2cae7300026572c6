"""The classes of settings that the flags of each command are made from."""

from __future__ import annotations

from importlib import import_module

from parallelmind.settings.setting import Settings

CLASSES: dict[str, list[str]] = {
    "answer": ["tasks.answer_options.AnswerOptions", "cli.job_flags.JobRunOptions"],
    "batch": ["tasks.batch_options.BatchOptions", "cli.job_flags.JobRunOptions"],
    "chat": ["cli.single.SingleOptions"],
    "check-pos2d": ["doctor.check.DoctorOptions"],
    "contexts": [
        "tasks.contexts.ContextOptions",
        "retrieval.retriever_options.RetrieverOptions",
        "retrieval.retriever.RetrieverSettings",
    ],
    "check-code": ["retrieval.project.options.ProjectOptions"],
    "convert": ["data.convert.ConvertOptions"],
    "docs-server": [
        "retrieval.project.options.ProjectOptions",
        "retrieval.search_options.SearchOptions",
        "cli.docs_server.DocsServerOptions",
    ],
    "doctor": ["doctor.check.DoctorOptions"],
    "evaluate": ["retrieval.retriever_options.RetrieverOptions", "retrieval.retriever.RetrieverSettings"],
    "generate": ["cli.single.SingleOptions"],
    "merge": ["models.merge_options.MergeOptions"],
    "pipeline": ["tasks.answer_options.AnswerOptions", "tasks.contexts.ContextOptions"],
    "serve": ["server.options.ServeOptions"],
    "show": ["cli.show.ShowOptions"],
    "train": ["training.options.TrainOptions", "training.new_model_options.NewModelOptions"],
}


def settings_class(path: str) -> type[Settings]:
    module, _, name = path.rpartition(".")
    found: type[Settings] = getattr(import_module(f"parallelmind.{module}"), name)
    return found
