"""The shell scripts around answering, started bare: on their defaults, from any folder, with any Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import few
from tests.tasks.answering import context_row, read_rows, write_rows

ROOT = Path(__file__).parents[2]
FOLDER = Path("utils") / "RAGutils" / "queryResultByInfer"
WORKERS, PIPELINE = "run_multi_worker_inference.sh", "run_complete_pipeline.sh"
CONTEXTS, RESULTS = "data/temp/contexts/batch_contexts.jsonl", "data/temp/inference/results.jsonl"
BACKEND = """
from parallelmind import QueryBasedInference

class Upper(QueryBasedInference):
    def generate_answer(self, query, context, retrieval_method):
        return query.upper()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout, with a space in its name."""
    folder = tmp_path / "the checkout"
    folder.mkdir()
    for name in ("utils", "src"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "scripts", folder / "scripts")  # which look for .venv where they really are
    for name in ("run_from_checkout.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def bash(command: object, *more: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    names = ("CONTEXTS_FILE", "OUTPUT_FILE", "MODEL_PATH", "QUERIES_FILE", "CORPUS_PATH", "OUTPUT_DIR", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(command), *more], capture_output=True, text=True, cwd=cwd, env=environment | variables, timeout=300
    )


@pytest.mark.parametrize("script", few([PIPELINE, WORKERS]))
def test_what_is_missing_is_told_with_a_command_that_works(checkout: Path, tmp_path: Path, script: str) -> None:
    done = bash(checkout / FOLDER / script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    missing = ["CONTEXTS_FILE", "MODEL_PATH"] if script == WORKERS else ["QUERIES_FILE", "CORPUS_PATH", "MODEL_PATH"]
    assert all(re.search(rf"^  .*{name}", done.stderr, re.M) for name in missing)
    assert "unbound" not in done.stderr
    command = done.stderr.splitlines()[-1]
    worked = bash("-c", f"{command} --max_samples_per_worker 2", cwd=tmp_path)
    assert worked.returncode == 0, worked.stderr
    assert "2 records = 2 successful + 0 errors" in worked.stdout
    assert not (tmp_path / CONTEXTS).exists()  # a try-out does not take the place of the user's own


@pytest.mark.parametrize("place", few(["elsewhere", "checkout", "scripts"]))
def test_the_documented_defaults_from_any_folder(checkout: Path, tmp_path: Path, place: str) -> None:
    folder = {"checkout": checkout, "scripts": checkout / "other", "elsewhere": tmp_path / "elsewhere"}[place]
    folder.mkdir(exist_ok=True)
    home = folder if place == "elsewhere" else checkout  # files of the current folder come first
    (folder / "upper.py").write_text(BACKEND)
    (home / CONTEXTS).parent.mkdir(parents=True)
    write_rows(home / CONTEXTS, [context_row(0, "q", "c")])
    done = bash(checkout / FOLDER / WORKERS, "--backend", "upper.py:Upper", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [row["answer"] for row in read_rows(home / RESULTS)] == ["Q"]


def test_variables_are_edited_at_the_top(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    shutil.copytree(ROOT / FOLDER, folder)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    script = folder / WORKERS
    text = script.read_text().replace("${NUM_WORKERS:-1}", "${NUM_WORKERS:-3}").replace("${TOP_P:-}", "${TOP_P:-0.5}")
    script.write_text(text)
    (tmp_path / "in").touch()
    show = tmp_path / "show"
    show.write_text('#!/usr/bin/env bash\necho "$*"\n')
    show.chmod(0o755)
    variables = {"CONTEXTS_FILE": "in", "MODEL_PATH": "m", "PYTHON": str(show)}
    assert (
        "--workers 3 --model_path m --max_new_tokens 512 --temperature 0.1 --top_p 0.5"
        in bash(script, cwd=tmp_path, **variables).stdout
    )
    given = bash(script, cwd=tmp_path, NUM_WORKERS="2", TEMPERATURE="0", **variables).stdout
    assert "--workers 2 --model_path m --max_new_tokens 512 --temperature 0 --top_p 0.5" in given


def test_without_python_another_is_taken_or_its_lack_is_told(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "tr"):
        (tools / name).symlink_to(str(shutil.which(name)))
    lacking = bash(checkout / FOLDER / WORKERS, cwd=tmp_path, PATH=str(tools))
    assert lacking.returncode == 1
    assert "no Python was found" in lacking.stderr
    for place in (tools / "python3", checkout / ".venv" / "bin" / "python"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f'#!{shutil.which("bash")}\nexec {sys.executable} "$@"\n')
        place.chmod(0o755)
        told = bash(checkout / FOLDER / WORKERS, cwd=tmp_path, PATH=str(tools)).stderr
        assert "no Python" not in told
        found = "python3" if place.parent == tools else str(place).replace(" ", "\\ ")
        assert f"  {found} " in told
        place.unlink()
