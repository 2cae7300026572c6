"""`parallelmind doctor`, `check-pos2d` and the shell script: what they show, and their exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import parallelmind
from parallelmind.cli import doctor
from parallelmind.cli.main import main
from parallelmind.doctor import GROUPS, CheckResult
from parallelmind.doctor.check import Status
from tests.families import char_tokenizer, tiny_model


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


def test_groups_are_summed_up_in_the_words_of_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["模块导入", "训练脚本", "推理脚本", "文档完整性", "pos2d 工作流程", "文件结构"]
    closing = "✅ 所有验证通过！系统已正确配置"

    def examined(**odd: Status) -> tuple[int, list[str]]:
        results = []
        for group in GROUPS:
            results.append(CheckResult(group=group, name="one", status="skip", found=""))
            results.append(CheckResult(group=group, name="two", status=odd.get(group, "pass"), found=""))
        code = doctor.report(results, as_json=False)
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
    # No test can fill the disk.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 2**20))
    assert main(["doctor", "--only", "files"]) == 1
    shown = capsys.readouterr().out
    assert "found: 5 MiB are free in " in shown
    assert "remedy: Make room" in shown
    assert "2 failed" in shown
    assert main(["doctor", "--only", "files", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    assert result["failed"] == 2


def test_a_group_that_cannot_start_fails_and_what_it_prints_is_not_in_the_json(tmp_path: Path) -> None:
    """Checks import torch when they are listed (devices) and when they run (files); this one prints, and is broken."""
    (tmp_path / "torch.py").write_text("print('noise')\nraise OSError('libcudart.so: cannot open')\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(parallelmind.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "parallelmind", "doctor", "--only", "devices", "--only", "files", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 1
    found = {(check["group"], check["name"]): check for check in json.loads(done.stdout)["checks"]}
    for name in (("devices", "start the checks"), ("files", "bundled model")):
        assert (found[name]["status"], found[name]["found"]) == ("fail", "OSError: libcudart.so: cannot open")
        assert found[name]["remedy"]
    assert found["files", "demo records"]["status"] == "pass"
    assert done.stderr.count("noise") == 2


def test_check_pos2d_shows_positions_and_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-pos2d", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "1 (main)" not in shown
    assert [line.split("│")[1:5] for line in shown.splitlines() if line.startswith("│ 7")] == [
        [" 7     ", " 2         ", " 256             ", " 4    "]
    ]
    assert shown.count("max |difference|") == 7
    assert "all checks passed" in shown
    blind = tiny_model("qwen2")
    for layer in blind.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    blind.save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    assert main(["check-pos2d", "--base_model", str(tmp_path), "--device", "cpu"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL the branch position changes the logits" in shown
    assert "1 checks failed" in shown
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
