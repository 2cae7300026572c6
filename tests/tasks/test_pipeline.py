"""Queries to contexts to answers, in one go, on the bundled corpus and model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from parallelmind.demos.retrieval import ASSETS, run_demo_rag
from parallelmind.jobs.statistics import Silent
from tests.exact import ON_CPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_the_demo_shows_what_differs_between_the_versions(folder: Path) -> None:
    demo = run_demo_rag(folder, Silent)
    assert demo.versions == ["numpy 1.16.6", "numpy 1.26.4"]
    by_api = {question["target_api"]: question["rows"] for question in demo.questions}
    removed, added = by_api["numpy.bool"], by_api["numpy.random.default_rng"]
    assert removed["numpy 1.16.6"]["retrieval_method"] == "exact_api_match"
    assert removed["numpy 1.26.4"]["retrieval_method"] == "absent"
    assert "does not exist in numpy 1.26.4" in removed["numpy 1.26.4"]["context"]
    assert added["numpy 1.16.6"]["retrieval_method"] == "absent"
    assert added["numpy 1.26.4"]["retrieval_method"] == "exact_api_match"
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]
    contexts = [json.loads(line) for line in (folder / "contexts.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in answers] == [row["id"] for row in contexts]
    assert all(row["success"] and isinstance(row["answer"], str) for row in answers)
    statistics = json.loads((folder / "statistics.json").read_text("utf-8"))
    assert statistics["answers"]["successful"] == len(answers) == 28
    assert statistics["contexts"]["contexts"] == 28


def texts(answers: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    return [(row["id"], row["answer"]) for row in rows]


def test_the_command_resumes_in_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "pipeline", "--queries_file", str(ASSETS / "queries.json"), "--corpus_path", str(ASSETS / "corpus"),
        "--index_path", str(tmp_path / "index"), "--output_dir", str(tmp_path / "out"), "--model_path", "tiny",
        "--max_tokens", "300", "--max_new_tokens", "8", "--temperature", "0", "--ignore_eos",
        "--workers", "0", "--max_samples", "3",
        *ON_CPU,
    ]  # fmt: skip
    assert main(command) == 0
    assert "3 records = 3 successful + 0 errors" in capsys.readouterr().out
    answers = tmp_path / "out" / "answers.jsonl"
    first = texts(answers)
    answers.unlink()
    assert main(command) == 0
    assert texts(answers) == first
    assert "contexts.jsonl is complete already" in capsys.readouterr().err


def test_contexts_are_cut_to_the_window_of_the_model_that_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the default --max_tokens, of which the bundled model's window takes half: every question is answered."""
    command = [
        "pipeline", "--queries_file", str(ASSETS / "queries.json"), "--corpus_path", str(ASSETS / "corpus"),
        "--index_path", str(tmp_path / "index"), "--output_dir", str(tmp_path / "out"), "--model_path", "tiny",
        "--max_new_tokens", "8", "--temperature", "0", "--ignore_eos", "--workers", "0", *ON_CPU,
    ]  # fmt: skip
    assert main(command) == 0
    told = capsys.readouterr()
    assert "28 records = 28 successful + 0 errors" in told.out
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()]
    cut = sum(row["context_cut"] for row in rows)
    assert 10 < cut < 20
    assert f"worker 0: {cut} of 28 contexts were too long and are cut to the model's window of 2048 tokens" in told.err
    assert all(row["tokens_in"] + 2 <= 2048 for row in rows)


@pytest.mark.slow
def test_the_shell_script_with_two_workers(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = root / "utils" / "RAGutils" / "queryResultByInfer" / "run_complete_pipeline.sh"
    environment = os.environ | {
        "QUERIES_FILE": str(ASSETS / "queries.json"),
        "CORPUS_PATH": str(ASSETS / "corpus"),
        "OUTPUT_DIR": str(tmp_path),
        "MODEL_PATH": "tiny",
        "NUM_WORKERS": "2",
        "TOTAL_GPUS": "0",
        "PYTHON": sys.executable,
        "CONTEXT_FLAGS": f"--max_tokens 300 --index_path {tmp_path / 'index'}",
    }
    done = subprocess.run(
        ["bash", str(script), "--max_new_tokens", "8", "--ignore_eos"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Worker 0 INFERENCE STATISTICS" in done.stdout
    assert "Worker 1 INFERENCE STATISTICS" in done.stdout
    assert len((tmp_path / "answers.jsonl").read_text("utf-8").splitlines()) == 28
