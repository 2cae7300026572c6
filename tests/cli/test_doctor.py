"""`parallelmind doctor`, `check-pos2d` and the shell script: what they show, and their exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parallelmind.cli import doctor
from parallelmind.cli.main import main
from parallelmind.doctor import (
    GROUPS,
    CheckResult,
    DoctorOptions,
    pos2d,
)
from parallelmind.doctor import files as doctor_files
from parallelmind.doctor.check import Check


def failures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for found in report["checks"] if found["status"] == "fail"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["doctor", "--json"])
    result: dict[str, Any] = json.loads(printed.getvalue())
    assert code == (0 if result["ok"] else 1)
    return result


def test_this_installation_passes(report: dict[str, Any]) -> None:
    assert [found for found in failures(report) if found["group"] != "documents"] == []


def test_the_documents_of_this_checkout_are_whole(report: dict[str, Any]) -> None:
    assert [found for found in failures(report) if found["group"] == "documents"] == []
    assert report["ok"] == (not failures(report))


def test_every_group_is_looked_at(report: dict[str, Any]) -> None:
    assert list(dict.fromkeys(found["group"] for found in report["checks"])) == list(GROUPS)
    assert report["passed"] + report["skipped"] + report["failed"] == len(report["checks"])
    for group in GROUPS:
        assert any(found["group"] == group and found["status"] == "pass" for found in report["checks"]), group
    assert all(set(found) == {"group", "name", "status", "found", "remedy"} for found in report["checks"])


def test_only_chooses_groups_and_the_table_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--only", "files", "--only", "versions"]) == 0
    shown = capsys.readouterr().out
    assert "bundled model" in shown
    assert "transformers" in shown
    assert "training" not in shown
    assert "no check failed" in shown
    assert "所有验证通过" not in shown  # not all was looked at
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--only", "everything"])
    assert stopped.value.code == 2


def test_groups_are_summed_up_in_the_words_of_the_documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["模块导入", "训练脚本", "推理脚本", "文档完整性", "pos2d 工作流程", "文件结构"]
    closing = "✅ 所有验证通过！系统已正确配置"

    def examined(**odd: str) -> tuple[int, list[str]]:
        def examine(*_: Any, **__: Any) -> list[CheckResult]:
            return [CheckResult(group=g, name=n, status=s, found="") for g in GROUPS for n, s in statuses(g)]

        def statuses(group: str) -> list[tuple[str, Any]]:
            return [("one", "skip"), ("two", odd.get(group, "pass"))]

        monkeypatch.setattr(doctor, "examine", examine)
        code = main(["doctor"])
        return code, [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    code, lines = examined()
    assert (code, lines[-1]) == (0, closing)
    assert [name for name in names if any(name in line and line.endswith("✅ 通过") for line in lines)] == names
    code, lines = examined(training="fail", files="skip")
    assert code == 1
    assert any("训练脚本" in line and line.endswith("❌ 失败") for line in lines)
    assert any("文件结构" in line and line.endswith("跳过") for line in lines)
    assert sum(line.endswith("✅ 通过") for line in lines) == len(GROUPS) - 2
    assert closing not in lines


def test_a_failure_shows_its_remedy_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_files, "_ROOM", 2**80)
    assert main(["doctor", "--only", "files"]) == 1
    shown = capsys.readouterr().out
    assert "remedy: Make room" in shown
    assert "2 failed" in shown
    assert main(["doctor", "--only", "files", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    assert result["failed"] == 2


def test_what_checks_print_does_not_get_into_the_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(options: DoctorOptions) -> list[Check]:
        return [Check(group="files", name="noise", run=lambda: print("noise") or "done", remedy="none")]  # type: ignore[func-returns-value]

    monkeypatch.setattr(doctor_files, "checks", noisy)
    assert main(["doctor", "--only", "files", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["found"] == "done"


def test_check_pos2d_shows_positions_and_measurements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-pos2d", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "1 (main)" not in shown
    assert [line.split("│")[1:5] for line in shown.splitlines() if line.startswith("│ 7")] == [
        [" 7     ", " 2         ", " 256             ", " 4    "]
    ]
    assert shown.count("max |difference|") == 7
    assert "all checks passed" in shown
    monkeypatch.setattr(pos2d, "set_rope_pos2d", lambda model, positions: None)
    assert main(["check-pos2d", "--device", "cpu"]) == 1
    assert "FAIL set_rope_pos2d" in capsys.readouterr().out
    assert main(["check-pos2d", "--base_model", "no/such/model", "--device", "cpu"]) == 1
    assert "no/such/model" in capsys.readouterr().err


# The shell script; that it passes with a model is shown by the compatibility tests

INFERENCE = Path(__file__).parents[2] / "scripts" / "test_inference.sh"


def run_script(tmp_path: Path, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with a program in the place of Python."""
    (tmp_path / "python").write_text(f"#!/usr/bin/env bash\n{python}\n")
    (tmp_path / "python").chmod(0o755)
    return subprocess.run(
        ["bash", str(INFERENCE), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(tmp_path / "python")},
        check=False,
    )


def test_the_shell_script_says_how_it_is_used(tmp_path: Path) -> None:
    done = run_script(tmp_path, "exit 1", "tiny", "adapter.pth")
    assert done.returncode == 2
    assert "BASE_MODEL LORA_PATH LORA_RANK" in done.stderr


def test_the_shell_script_ends_with_the_first_failure(tmp_path: Path) -> None:
    done = run_script(
        tmp_path, '[[ "$*" != *parallel_inference* ]] || { echo broken; exit 1; }', "tiny", "a b.pth", "8"
    )
    assert done.returncode == 1
    assert done.stdout == "ok    generate\n"
    assert done.stderr == "      broken\nFAIL  batch\n"


def test_the_shell_script_checks_what_the_batch_wrote(tmp_path: Path) -> None:
    done = run_script(tmp_path, f'[[ "$1" != - ]] || exec {sys.executable} "$@"', "tiny", "a.pth", "8")
    assert done.returncode == 1
    assert "alone.jsonl" in done.stderr
    assert done.stderr.endswith("FAIL  batch\n")
