"""What is changed in a document's command before it is run here, and which commands are not run, with the reason.

A command that no rule names is run as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from tests.docs.blocks import ROOT

SUBSTITUTED: list[tuple[str, str]] = [
    # Weights cannot be downloaded: every hub model is the bundled one.
    (r'(?<=from_pretrained\(")[\w.-]+/[\w.-]+', str(ROOT / "src/parallelmind/assets/tiny")),
    (r"\b(?:Qwen|meta-llama|mistralai|google)/[\w.-]+", "tiny"),
    # Worker processes take seconds to start; tests/jobs, tests/cli and tests/compatibility run them.
    (r"(?<=--workers )\d+", "0"),
    # Packages cannot be downloaded: the corpus is the bundled one.
    (r"out/corpora", "corpora"),
    # There is no GPU.
    (r"(?<=--device )cuda(?::\d+)?", "cpu"),
    (r'(?<=device=)"cuda(?::\d+)?"', '"cpu"'),
    (r'(?<=dtype=)"bfloat16"', '"float32"'),
]
"""Patterns, applied to the words of commands (joined by spaces) and to Python blocks."""

ADDED: dict[str, list[str]] = {
    # Flags that come last win. Cheaper, or with a port that is free; never another meaning.
    "train": ["--max_steps", "2", "--eval_samples", "2"],
    "generate": ["--max_new_tokens", "12"],
    "chat": ["--max_new_tokens", "12"],
    "serve": ["--port", "0"],
    "batch": ["--max_new_tokens", "12"],
    "answer": ["--max_new_tokens", "12", "--max_samples_per_worker", "4"],
    "pipeline": ["--max_new_tokens", "12", "--max_samples", "4"],
}
"""By command: what is appended."""

ENVIRONMENT = {"TOGETHER_API_KEY": "", "OPENAI_API_KEY": "", "PARALLELMIND_API_KEY": ""}
"""Unset while commands run, so that none of them reaches a service."""

PREPARED: dict[str, dict[str, str]] = {
    "docs/INFERENCE_GUIDE.md": {"out/lora/mine_final.pth": "adapter.pth"},
    "docs/service.md": {"out/lora/law_final.pth": "adapter.pth", "out/lora/code": "adapter"},
}
"""By document: files that its commands take for granted, and the adapter (`.pth` or folder) that is put there."""


@dataclass(frozen=True)
class Needs:
    """Commands that need what may not be there; then they must end with an error that says so."""

    pattern: str
    there: Callable[[], bool]
    said: str


def _installed(package: str) -> Callable[[], bool]:
    return lambda: find_spec(package) is not None


NEEDS = [
    Needs(r"--use_wandb|--report_to wandb", _installed("wandb"), "pip install 'parallelmind[wandb]'"),
    Needs(r"--report_to trackio", _installed("trackio"), "pip install 'parallelmind[trackio]'"),
]

_GUIDES = ("QUICK_START_LORA", "INFERENCE_GUIDE", "TRAIN_HF_LORA_USAGE", "POS2D_IMPLEMENTATION_SUMMARY", "agents")
TRANSLATIONS = {"README.zh.md": "README.md"} | {f"docs/zh/{name}.md": f"docs/{name}.md" for name in _GUIDES}
"""Their commands are those of the original, which are run there."""


@dataclass(frozen=True)
class NotRun:
    """Commands that are checked by the real parsers and not run."""

    pattern: str
    """Of the command as it is written, from its beginning."""
    reason: str
    test: str = ""
    """The test that runs it, as path::function."""
    check: bool = True
    """Its flags are parsed; not for programs of others."""

    def proof_exists(self) -> bool:
        """Whether the test that the rule names is there."""
        path, _, function = self.test.partition("::")
        return f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")


NOT_RUN = [
    NotRun(r"(pip|python3? -m pip) install", "needs a package index"),
    NotRun(r"(git clone|cd|mkdir|python3 -m venv|source|nvidia-smi|sbatch)\b", "the reader's own shell", check=False),
    NotRun(r"hf download", "downloads a model", check=False),
    NotRun(
        r"make demo$",
        "installs, then runs `parallelmind demo`",
        "tests/test_wheel.py::test_the_demo_of_the_wheel_is_exact_and_identical",
    ),
    NotRun(
        r"parallelmind demo$",
        "run as a process",
        "tests/test_wheel.py::test_the_demo_of_the_wheel_is_exact_and_identical",
    ),
    NotRun(
        r"(parallelmind doctor( --json| --base_model .*)?|python scripts/validate_inference_setup\.py)$",
        "takes 20 seconds",
        "tests/compatibility/test_checks.py::test_validate_inference_setup",
    ),
    NotRun(
        r"bash scripts/test_inference\.sh",
        "several processes",
        "tests/compatibility/test_checks.py::test_inference_sh",
    ),
    NotRun(
        r"make demo-rag$",
        "run as a function",
        "tests/tasks/test_pipeline.py::test_the_demo_shows_what_differs_between_the_versions",
    ),
    NotRun(r"make (test|test-slow|check|bench)$", "it would run itself, or takes minutes"),
    NotRun(
        r"parallelmind check-code",
        "its files are the reader's",
        "tests/cli/test_check_code.py::test_what_is_found",
    ),
    NotRun(
        r"parallelmind docs-server",
        "a process that goes on",
        "tests/server/documentation/test_mcp.py::test_over_http",
    ),
    NotRun(r"parallelmind corpus build", "downloads packages", "tests/cli/test_corpus.py::test_what_is_there"),
    NotRun(
        r"(srun .*)?torchrun .*scripts/parallel_inference_hf_lora\.py",
        "several processes or machines",
        "tests/compatibility/test_batch.py::test_torchrun",
    ),
    NotRun(
        r"(srun .*)?torchrun .*trainer/train_hf",
        "several processes or machines",
        "tests/compatibility/test_train_files.py::test_one_process_and_two",
    ),
    NotRun(
        r"parallelmind train .*--push_to_hub",
        "writes to the Hub",
        "tests/training/test_publishing.py::test_the_command_pushes_the_adapter_and_checkpoints",
    ),
    NotRun(
        r"torchrun .*multi_worker_inference\.py",
        "several processes",
        "tests/compatibility/test_workers.py::test_torchrun_and_a_class_of_the_user",
    ),
    NotRun(
        r"ray (start|stop|status)",
        "starts a cluster",
        "tests/jobs/test_transports.py::test_a_lost_node_loses_no_record",
    ),
    NotRun(
        r"parallelmind .*--launcher ray",
        "needs a cluster",
        "tests/jobs/test_transports.py::test_a_lost_node_loses_no_record",
    ),
    NotRun(
        r"bash utils/RAGutils/.*/run_multi_worker_inference\.sh",
        "several processes",
        "tests/cli/test_answer.py::test_the_shell_script_answers_with_two_workers",
    ),
    NotRun(
        r"bash utils/RAGutils/.*/run_complete_pipeline\.sh",
        "several processes",
        "tests/tasks/test_pipeline.py::test_the_shell_script_with_two_workers",
    ),
    NotRun(
        r"parallelmind .*(--inference_type (togetherai|openai)|--embedding_source togetherai)",
        "needs a key or a server",
        "tests/cli/test_answer.py::test_over_http_with_a_key",
    ),
    NotRun(r"parallelmind .*(s3|gs|hf)://", "remote", "tests/cli/test_answer.py::test_urls_in_place_of_paths"),
    NotRun(r"parallelmind .*--hf_dataset [\w-]+/", "downloads a data set"),
    NotRun(
        r"uvicorn ",
        "a process of its own",
        "tests/compatibility/test_service.py::test_started",
    ),
]


def not_run(command: str) -> NotRun | None:
    """The rule that names a command."""
    return next((rule for rule in NOT_RUN if re.match(rule.pattern, command)), None)
