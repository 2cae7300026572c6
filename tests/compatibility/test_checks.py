"""The checks of an installation, and the documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from parallelmind.doctor import Subject, examine
from tests.compatibility.command_lines import ROOT, link_checkout, run_line, run_script
from tests.compatibility.conftest import Adapters
from tests.compatibility.contract import proves

GROUPS = ["imports", "versions", "devices", "training", "inference", "documents", "pos2d", "files"]
GUIDES = ["INFERENCE_GUIDE", "TRAIN_HF_LORA_USAGE", "POS2D_IMPLEMENTATION_SUMMARY", "QUICK_START_LORA"]
DOCUMENTS = [*(f"docs/{name}.md" for name in GUIDES), "COMPLETION_SUMMARY.md"]
BASH = ["bash", str(ROOT / "scripts" / "test_inference.sh")]


@proves("checks", "python scripts/validate_inference_setup.py", "exit code")
@pytest.mark.half_precision
def test_validate_inference_setup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkout passes: exit code 0, and a table with every group in which nothing failed."""
    monkeypatch.setenv("COLUMNS", "200")
    run_script("python scripts/validate_inference_setup.py", cwd=ROOT)
    shown = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert [row[0] for row in cells if row[0]] == GROUPS
    assert {row[2] for row in cells if row[2]} <= {"pass", "skip"}
    passed = [row[2] for row in cells].count("pass")
    skipped = [row[2] for row in cells].count("skip")
    assert f"no check failed: {passed} passed, {skipped} skipped" in shown
    for name in ("模块导入", "训练脚本", "推理脚本", "文档完整性", "pos2d 工作流程", "文件结构"):
        assert re.search(rf"{name} .*✅ 通过", shown), name
    assert shown.endswith("✅ 所有验证通过！系统已正确配置\n")


@proves("checks", "exit code")
def test_a_failure_shows_in_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a model that is not there `parallelmind doctor` ends with 1, says what was found, and names the remedy."""
    missing = str(tmp_path / "nowhere")
    assert main(["doctor", "--only", "inference", "--base_model", missing]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"│ +fail +│", shown)
    assert f"found: --base_model {missing}: not a local folder" in shown
    assert "remedy: " in shown
    assert re.search(r"[1-9]\d* failed: \d+ passed", shown)


@proves("checks", "python scripts/test_pos2d_handling.py")
def test_pos2d_handling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script shows branch id, branch position and time of each token of a row, and every check holds."""
    run_script("python scripts/test_pos2d_handling.py", cwd=link_checkout(tmp_path))
    shown = capsys.readouterr().out
    rows = [[int(cell) for cell in re.findall(r"\d+", line)] for line in shown.splitlines() if line[:1] == "│"]
    assert rows == [
        *([time, 0, 0, time] for time in range(4)),
        *([4 + step, 1, 128, 4 + step] for step in range(3)),
        *([7 + step, 2, 256, 4 + step] for step in range(2)),
    ]
    marks = [line.split()[0] for line in shown.splitlines() if line.startswith(("ok ", "FAIL"))]
    assert marks == ["ok"] * len(marks)
    assert len(marks) > 5
    assert shown.endswith("all checks passed\n")


@pytest.mark.slow
@proves("checks", "bash scripts/test_inference.sh BASE_MODEL LORA_PATH LORA_RANK")
def test_inference_sh(adapters: Adapters, tmp_path: Path) -> None:
    """With an adapter of rank 8, generate, batch, and batch under torchrun answer."""
    line = f"bash scripts/test_inference.sh tiny {adapters.pth} 8"
    done = run_line(line, cwd=link_checkout(tmp_path))
    assert done.stdout.splitlines() == [
        "ok    generate",
        "ok    batch",
        "ok    batch under torchrun, 2 processes",
        "all checks passed",
    ]


@proves("checks", "bash scripts/test_inference.sh BASE_MODEL LORA_PATH LORA_RANK", "exit code")
@pytest.mark.parametrize(
    ("name", "script"), [("generate", "inference_hf_lora"), ("batch", "parallel_inference_hf_lora")]
)
def test_inference_sh_fails_with_its_commands(tmp_path: Path, name: str, script: str) -> None:
    """Base model, adapter and rank reach the commands; where one fails, its output is shown and the exit code is 1."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in */{script}.py*) echo "asked: $*"; exit 3;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run([*BASH, "m", "a.pth", "16"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert re.search(r"asked: .* --base_model m --lora_path a\.pth --lora_rank 16", done.stderr)
    assert f"FAIL  {name}" in done.stderr
    assert "all checks passed" not in done.stdout


@proves("checks", "bash scripts/test_inference.sh BASE_MODEL LORA_PATH LORA_RANK", "exit code")
def test_inference_sh_names_what_is_missing() -> None:
    """Without its three arguments the script shows how it is used."""
    done = subprocess.run([*BASH, "m"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "BASE_MODEL LORA_PATH LORA_RANK" in done.stderr


@proves("checks", *DOCUMENTS)
def test_documents() -> None:
    """The document is there, has text, and none of its links is dead."""
    found = {outcome.name: outcome for outcome in examine(Subject(), ["documents"], begin=lambda *_: None)}
    assert [found[name].status for name in DOCUMENTS] == ["pass"] * len(DOCUMENTS), found
