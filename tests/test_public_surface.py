"""What `parallelmind` exports: the names that documents, examples and users import."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parallelmind
from tests.docs.blocks import DOCUMENTS, blocks_of

ROOT = Path(__file__).parents[1]
EXPORTED = [
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
"""A name that is removed here breaks programs: CHANGELOG.md says so."""


def test_the_exported_names() -> None:
    assert sorted(parallelmind.__all__) == EXPORTED
    for name in EXPORTED:
        assert getattr(parallelmind, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = parallelmind.Motor


def test_type_checkers_see_the_same_objects() -> None:
    tree = ast.parse(inspect.getsource(parallelmind))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted([*seen, "ParallelMindError", "__version__"]) == EXPORTED
    for name, module in seen.items():
        assert getattr(sys.modules[str(module)], name) is getattr(parallelmind, name)


def test_the_import_is_light() -> None:
    """Measured 20 ms; torch and transformers take seconds."""
    code = "import sys, parallelmind; print([name for name in sys.modules if name.startswith('parallelmind')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "['parallelmind.errors', 'parallelmind']"
    heavy = "import sys, parallelmind; sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", heavy], check=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_import_from_nowhere_else(document: str) -> None:
    for block in blocks_of(document):
        if block.language == "python":
            assert imported_from(block.text) <= {"parallelmind"}, block.line


def test_examples_import_from_nowhere_else() -> None:
    for path in (ROOT / "examples").rglob("*.py"):
        assert imported_from(path.read_text(encoding="utf-8")) <= {"parallelmind"}, path


def imported_from(program: str) -> set[str]:
    return set(re.findall(r"^\s*(?:from|import) (parallelmind\S*)", program, re.MULTILINE))
