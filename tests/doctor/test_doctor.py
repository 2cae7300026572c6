"""Each check of the installation fails when what it looks at is broken."""

from __future__ import annotations

import shutil
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind.doctor import (
    CheckResult,
    DoctorOptions,
    devices,
    documents,
    imports,
    versions,
)
from parallelmind.doctor import check as check_module
from parallelmind.doctor import files as doctor_files
from parallelmind.doctor.check import Check, CheckFailedError, NotApplicableError, Once, perform
from parallelmind.errors import TrainingError
from tests.doctor.checking import DEFAULT, assert_fails, result, results


def test_a_check_that_raises_is_a_failure() -> None:
    def check(error: BaseException) -> Check:
        def run() -> str:
            raise error

        return Check(group="files", name="any", run=run, remedy="the remedy")

    assert perform(check(RuntimeError("boom"))) == CheckResult(
        group="files", name="any", status="fail", found="RuntimeError: boom", remedy="the remedy"
    )
    assert perform(check(SystemExit(3))).status == "fail"
    assert perform(check(TrainingError("no memory; make room"))).found == "no memory; make room"
    assert perform(check(CheckFailedError("wrong", "another remedy"))).remedy == "another remedy"
    assert perform(check(NotApplicableError("not here"))).status == "skip"
    with pytest.raises(KeyboardInterrupt):
        perform(check(KeyboardInterrupt()))


def test_a_group_that_cannot_start_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parallelmind.doctor.devices", None)
    found = results("devices")
    assert_fails(found["start the checks"], "ModuleNotFoundError")


def test_what_several_checks_need_is_made_once() -> None:
    made: list[int] = []

    def fail() -> int:
        made.append(1)
        raise ValueError("broken")

    needed = Once(fail, "the making")
    with pytest.raises(ValueError, match="broken"):
        needed()
    for _ in range(2):
        with pytest.raises(NotApplicableError, match="not reached: the making failed"):
            needed()
    assert made == [1]


def test_imports_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parallelmind.jobs.view", None)
    assert_fails(result("imports", "parallelmind.jobs"), "parallelmind.jobs.view")
    monkeypatch.setattr("parallelmind.__all__", ["Engine", "Gone"])
    assert_fails(result("imports", "parallelmind"), "Gone")


def test_modules_of_an_extra_that_is_not_installed_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "parallelmind.server.app", raising=False)
    found = result("imports", "parallelmind.server")
    assert found.status == "skip"
    assert "pip install 'parallelmind[serve]'" in found.found


def test_documented_imports_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("model.model_lora.save_lora")
    assert_fails(result("imports", "model.model_lora"), "save_lora")
    other = types.ModuleType("parallel.columnar")
    other.__file__ = "/elsewhere/parallel/columnar.py"
    for name in imports.DOCUMENTED["parallel.columnar"]:
        setattr(other, name, None)
    monkeypatch.setitem(sys.modules, "parallel.columnar", other)
    assert_fails(result("imports", "parallel.columnar"), "another program's")


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.1.0", "parallelmind": "9.9", "fastapi": "0.1"}

    def version(name: str) -> str:
        if name in ("peft", "ray"):
            raise PackageNotFoundError(name)
        return installed.get(name, "999")

    monkeypatch.setattr(versions, "version", version)
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.10.2")
    found = results("versions")
    assert_fails(found["torch"], "2.1.0", ">=2.9")
    assert_fails(found["peft"], "not installed")
    assert_fails(found["parallelmind"], "9.9")
    assert_fails(found["python"], "3.10.2", ">=3.11")
    assert_fails(found["[serve]"], "fastapi 0.1")
    assert found["[ray]"].status == "skip"
    assert found["transformers"].status == "pass"


def test_a_checkout_that_is_not_installed_declares_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    installed = [check.name for check in versions.checks(DEFAULT)]
    monkeypatch.setattr(versions, "distribution", missing)
    versions._declared.cache_clear()
    try:
        assert [check.name for check in versions.checks(DEFAULT)][:2] == installed[:2]
        assert {check.name for check in versions.checks(DEFAULT)} == set(installed)
    finally:
        versions._declared.cache_clear()


def test_devices_that_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert_fails(result("devices", "device in use", DoctorOptions(device="cuda:99")), "cuda:99")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    assert_fails(result("devices", "cuda"), "sees no GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert result("devices", "cuda").status == "skip"
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda left, right: product(left, right) * (1 if left.dtype == torch.float64 else 1.1),
    )
    assert_fails(result("devices", "cpu"), "is wrong by")


@pytest.fixture
def empty_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (check_module, documents):
        monkeypatch.setattr(module, "find_checkout", lambda: tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_documents(empty_checkout: Path) -> None:
    assert all(found.status == "fail" for found in results("documents").values())
    guide = empty_checkout / "docs" / "extra.md"
    guide.write_text(
        "[a](b.md) [web](https://x.example/y) [here](#there)\n```text\n[c](gone.md)\n```\n`[d](gone.md)`\n"
    )
    assert_fails(result("documents", "docs/extra.md"), "1 of its links", "b.md")
    (empty_checkout / "docs" / "b.md").write_text("here")
    assert result("documents", "docs/extra.md").status == "pass"
    guide.write_bytes(b"\xff\xfe")
    assert_fails(result("documents", "docs/extra.md"), "UnicodeDecodeError")
    guide.write_text(" \n")
    assert_fails(result("documents", "docs/extra.md"), "empty")


def test_without_a_checkout_its_parts_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (check_module, documents):
        monkeypatch.setattr(module, "find_checkout", lambda: None)
    assert {found.status for found in results("documents").values()} == {"skip"}
    assert result("files", "entry scripts").status == "skip"
    assert result("imports", "model.model_lora").status == "skip"


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = tmp_path / "parallelmind"
    shutil.copytree(doctor_files._package(), copied, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(doctor_files, "_package", lambda: copied)
    return copied / "assets"


def test_files_that_are_whole(assets: Path) -> None:
    assert {name for name, found in results("files").items() if found.status == "fail"} == set()


def test_files_that_are_damaged(assets: Path) -> None:
    (assets / "tiny" / "model.safetensors").write_bytes((assets / "tiny" / "model.safetensors").read_bytes()[:1000])
    (assets / "demo_records.jsonl").write_text('{"main": "m", "branches": ["a", "b"], "answers": ["1"]}\n')
    (assets / "rag" / "corpus" / "numpy" / "1.16.6.jsonl").write_text('{"doc": "no path"}\n')
    (assets.parent / "server" / "static" / "grid.js").unlink()
    found = results("files")
    for name in ("bundled model", "demo records", "demo corpus", "web page"):
        assert_fails(found[name])
    assert "grid.js" in found["web page"].found
    (assets / "tiny" / "tokenizer.json").unlink()
    assert_fails(result("files", "bundled model"), "tokenizer.json")


def test_scripts_that_are_missing_or_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_files, "checkout_root", lambda: tmp_path)
    monkeypatch.setattr(doctor_files, "SCRIPTS", ("one.py", "two.sh"))
    assert_fails(result("files", "entry scripts"), "one.py is not there")
    (tmp_path / "one.py").write_text("def")
    assert_fails(result("files", "entry scripts"), "SyntaxError")
    (tmp_path / "one.py").write_text("")
    (tmp_path / "two.sh").write_text("if")
    assert_fails(result("files", "entry scripts"), "two.sh")
    (tmp_path / "two.sh").write_text("true")
    assert result("files", "entry scripts").found == "2 scripts"


def test_a_folder_that_cannot_be_written_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor_files.tempfile, "TemporaryFile", refuse)
    assert_fails(result("files", "output folder"), "Permission denied")
