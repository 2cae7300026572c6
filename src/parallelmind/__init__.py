"""ParallelMind: parallel branches for any Hugging Face causal language model.

    from parallelmind import Engine, Request, SamplingParams, load_model_with_lora

What is listed here is the public interface, and docs/api.md describes it; every other name may change in any version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallelmind.errors import ParallelMindError

if TYPE_CHECKING:
    from parallelmind.answering.backends.base import QueryBasedInference
    from parallelmind.columnar import (
        auto_pair_indices,
        build_columnar_causal_mask,
        pack_row,
        patch_model_with_interleaved_2d_rope,
        set_rope_pos2d,
    )
    from parallelmind.data.collator import ParallelPretrainCollator
    from parallelmind.data.dataset import ParallelPretrainDataset
    from parallelmind.engine.engine import Engine
    from parallelmind.engine.request import Branch, BranchResult, Event, Request, RequestResult
    from parallelmind.jobs.options import RunOptions
    from parallelmind.jobs.results import RecordResult
    from parallelmind.jobs.run import run_job
    from parallelmind.jobs.task import Task
    from parallelmind.models.cpu.optimize import optimize_for_cpu
    from parallelmind.models.generation import generate_text
    from parallelmind.models.loader import load_model_with_lora
    from parallelmind.models.lora import apply_lora, load_lora, save_lora
    from parallelmind.retrieval.queries import Query
    from parallelmind.retrieval.retriever import RetrieverSettings
    from parallelmind.retrieval.retriever_options import RetrieverOptions
    from parallelmind.settings.sampling import SamplingParams
    from parallelmind.tasks.answer import run_answer
    from parallelmind.tasks.answer_options import AnswerOptions
    from parallelmind.tasks.batch import run_batch
    from parallelmind.tasks.batch_options import BatchOptions
    from parallelmind.tasks.contexts import ContextOptions, run_contexts
    from parallelmind.training.options import TrainOptions
    from parallelmind.training.run import run_training

__version__ = "0.1.0"

__all__ = [
    "AnswerOptions",
    "BatchOptions",
    "Branch",
    "BranchResult",
    "ContextOptions",
    "Engine",
    "Event",
    "ParallelMindError",
    "ParallelPretrainCollator",
    "ParallelPretrainDataset",
    "Query",
    "QueryBasedInference",
    "RecordResult",
    "Request",
    "RequestResult",
    "RetrieverOptions",
    "RetrieverSettings",
    "RunOptions",
    "SamplingParams",
    "Task",
    "TrainOptions",
    "__version__",
    "apply_lora",
    "auto_pair_indices",
    "build_columnar_causal_mask",
    "generate_text",
    "load_lora",
    "load_model_with_lora",
    "optimize_for_cpu",
    "pack_row",
    "patch_model_with_interleaved_2d_rope",
    "run_answer",
    "run_batch",
    "run_contexts",
    "run_job",
    "run_training",
    "save_lora",
    "set_rope_pos2d",
]

_LAZY = {
    "parallelmind.answering.backends.base": ("QueryBasedInference",),
    "parallelmind.columnar": (
        "auto_pair_indices",
        "build_columnar_causal_mask",
        "pack_row",
        "patch_model_with_interleaved_2d_rope",
        "set_rope_pos2d",
    ),
    "parallelmind.data.collator": ("ParallelPretrainCollator",),
    "parallelmind.data.dataset": ("ParallelPretrainDataset",),
    "parallelmind.engine.engine": ("Engine",),
    "parallelmind.engine.request": ("Branch", "BranchResult", "Event", "Request", "RequestResult"),
    "parallelmind.settings.sampling": ("SamplingParams",),
    "parallelmind.jobs.options": ("RunOptions",),
    "parallelmind.jobs.results": ("RecordResult",),
    "parallelmind.jobs.run": ("run_job",),
    "parallelmind.jobs.task": ("Task",),
    "parallelmind.models.cpu.optimize": ("optimize_for_cpu",),
    "parallelmind.models.generation": ("generate_text",),
    "parallelmind.models.loader": ("load_model_with_lora",),
    "parallelmind.models.lora": ("apply_lora", "load_lora", "save_lora"),
    "parallelmind.retrieval.queries": ("Query",),
    "parallelmind.retrieval.retriever": ("RetrieverSettings",),
    "parallelmind.retrieval.retriever_options": ("RetrieverOptions",),
    "parallelmind.tasks.answer": ("run_answer",),
    "parallelmind.tasks.answer_options": ("AnswerOptions",),
    "parallelmind.tasks.batch": ("run_batch",),
    "parallelmind.tasks.batch_options": ("BatchOptions",),
    "parallelmind.tasks.contexts": ("ContextOptions", "run_contexts"),
    "parallelmind.training.options": ("TrainOptions",),
    "parallelmind.training.run": ("run_training",),
}
"""The imports above, made on first use: `parallelmind --help` must not wait for torch and transformers."""

_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'parallelmind' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
