"""A checkout that is not installed, on a Python that lacks everything: one message says what to do."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import packaging
import pytest

import run_from_checkout

ROOT = Path(__file__).parents[1]
FOLDERS = ["model", "parallel", "scripts", "trainer", "utils"]
PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
MODULES = ["model.model_lora", "parallel.columnar", "scripts.inference_hf_lora", "trainer.train_hf_lora"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With the entry points, and without an environment."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("run_from_checkout.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    return tmp_path.resolve()


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=60, check=False
    )


def put_pythons(folder: Path, does: str) -> str:
    """Programs python and python3 that do this; returns a PATH on which they are first."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3"):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def bare(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """By a Python without any package."""
    return run(sys.executable, "-S", *command, cwd=cwd)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_how_to_install(program: str, checkout: Path) -> None:
    done = bare(program, "--prompt", "two words", cwd=checkout)
    assert (done.returncode, done.stdout) == (1, "")
    problem, *remedy = done.stderr.splitlines()
    assert re.fullmatch(r"error: ParallelMind is not installed for \S+: torch, .* and \d+ more packages are missing\.",
                        problem)  # fmt: skip
    assert [line.split()[0] for line in remedy[1:4]] == ["make", "python3", "pip"]
    assert remedy[0] == f"Install it, in {checkout}, by one of"
    assert remedy[-1].strip() == f".venv/bin/python {program} --prompt 'two words'"
    assert len(PROGRAMS) > 9


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_so_in_its_error(module: str, checkout: Path) -> None:
    done = bare("-c", f"import {module}", cwd=checkout)
    assert done.returncode == 1
    assert "ImportError: ParallelMind is not installed for " in done.stderr
    assert "make demo" in done.stderr


def test_where_it_is_installed_in_venv_the_command_that_works_is_named(checkout: Path) -> None:
    packages = checkout / ".venv" / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    unfinished = bare("trainer/train_hf_lora.py", cwd=checkout)
    assert "make demo" in unfinished.stderr
    (packages / "parallelmind-0.1.0.dist-info").mkdir()
    done = bare("trainer/train_hf_lora.py", "--epochs", "2", cwd=checkout)
    assert "make demo" not in done.stderr
    assert done.stderr.endswith("\n    .venv/bin/python trainer/train_hf_lora.py --epochs 2\n")
    elsewhere = bare("../trainer/train_hf_lora.py", cwd=checkout / "scripts")
    assert elsewhere.stderr.endswith(f"\n    {checkout}/.venv/bin/python ../trainer/train_hf_lora.py\n")


@pytest.mark.parametrize(
    "script",
    ["scripts/test_inference.sh tiny adapter.pth 8",
     "utils/RAGutils/queryResultByInfer/run_multi_worker_inference.sh",
     "utils/RAGutils/queryResultByInfer/run_complete_pipeline.sh"],
)  # fmt: skip
def test_shell_scripts_say_so_too(script: str, checkout: Path) -> None:
    path = put_pythons(checkout / "bin", f'exec "{sys.executable}" -S "$@"')
    files = {"CONTEXTS_FILE": "c.jsonl", "OUTPUT_FILE": "a.jsonl", "QUERIES_FILE": "q.json", "CORPUS_PATH": "corpora"}
    done = run("bash", *script.split(), cwd=checkout, PATH=path, MODEL_PATH="tiny", **files)
    assert done.returncode != 0
    assert "ParallelMind is not installed for " in done.stderr
    assert "make demo" in done.stderr


def test_shell_scripts_take_the_environment_of_the_checkout(checkout: Path) -> None:
    """If the Python on the path cannot run the package; else they take that."""
    path = put_pythons(checkout / "bin", "exit 1")
    put_pythons(checkout / ".venv" / "bin", 'echo "this one: $*"')
    script = "utils/RAGutils/queryResultByInfer/run_multi_worker_inference.sh"
    files = {"CONTEXTS_FILE": "c.jsonl", "OUTPUT_FILE": "a.jsonl", "MODEL_PATH": "tiny"}
    (checkout / "c.jsonl").touch()
    assert run("bash", script, cwd=checkout, PATH=path, **files).stdout.startswith("this one: ")
    put_pythons(checkout / "bin", 'echo "the other: $*"')
    assert run("bash", script, cwd=checkout, PATH=path, **files).stdout.startswith("the other: ")


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    monkeypatch.setattr(sys, "version", "3.8.10 (default)")
    with pytest.raises(ImportError, match=r"needs Python 3\.11 or newer; \S+ is 3\.8\.10\.\n"):
        run_from_checkout.prepare("model.model_lora")
    with pytest.raises(SystemExit, match=r"^error: ParallelMind needs Python 3\.11"):
        run_from_checkout.prepare("__main__")


def test_packages_that_are_too_old_are_named(checkout: Path) -> None:
    packages = checkout / "packages"
    packages.mkdir()
    (packages / "packaging").symlink_to(Path(packaging.__file__).parent)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in (re.split(r"[^\w.-]", requirement)[0] for requirement in project["dependencies"]):
        version = "4.44.0" if name == "transformers" else metadata.version(name)
        folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    done = run(sys.executable, "-S", "trainer/train_hf_lora.py", cwd=checkout, PYTHONPATH=str(packages))
    assert done.returncode == 1
    old = r"packages of \S+: transformers 4\.44\.0 \(needed: >=[\d.]+\) is too old\.\n"
    assert re.search(old, done.stderr), done.stderr


@pytest.mark.parametrize("path", ["run_from_checkout.py", *PROGRAMS, "model/model_lora.py", "parallel/columnar.py"])
def test_every_python_can_read_the_entry_points(path: str) -> None:
    """Nothing in them is newer than Python 2.7; an old one would else end in a SyntaxError."""
    source = (ROOT / path).read_text(encoding="utf-8")
    newer = (ast.JoinedStr, ast.AnnAssign, ast.AsyncFunctionDef, ast.NamedExpr, ast.Starred, ast.Match, ast.Nonlocal)
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, newer), ast.unparse(node)
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            everyone = [*arguments.args, *filter(None, [arguments.vararg, arguments.kwarg])]
            assert node.returns is None, node.name
            assert all(argument.annotation is None for argument in everyone), node.name
            assert not arguments.kwonlyargs, node.name
            assert not arguments.posonlyargs, node.name
    assert "from __future__" not in source
    assert source.isascii() or source.startswith("# -*- coding: utf-8 -*-")


def test_requirements_are_written_once() -> None:
    """requirements.txt names the checkout with extras, and constraints.txt, and no package or version of its own."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "-c constraints.txt"
    assert re.fullmatch(r"-e \.\[[\w,]+\]", lines[1])
    assert len(lines) == 2
    assert "--requirement requirements.txt" in (ROOT / "Makefile").read_text()
