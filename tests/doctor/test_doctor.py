"""Each check of the installation fails when what it looks at is broken."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from parallelmind.doctor import CheckResult, Subject
from parallelmind.doctor.check import Check, CheckFailedError, NotApplicableError, Once, perform
from parallelmind.doctor.files import SCRIPTS
from parallelmind.doctor.versions import Declared
from parallelmind.errors import TrainingError
from tests.doctor.checking import DEFAULT, assert_fails, result, results, with_model

ROOT = Path(__file__).parents[2]


def test_a_check_that_raises_is_a_failure() -> None:
    def raised(error: BaseException) -> CheckResult:
        def run() -> str:
            raise error

        return perform("files", Check("any", run, "the remedy"))

    assert raised(RuntimeError("boom")) == CheckResult(
        group="files", name="any", status="fail", found="RuntimeError: boom", remedy="the remedy"
    )
    assert raised(SystemExit(3)).status == "fail"
    assert raised(TrainingError("no memory; make room")).found == "no memory; make room"
    assert raised(CheckFailedError("wrong", "another remedy")).remedy == "another remedy"
    assert raised(NotApplicableError("not here")).status == "skip"
    with pytest.raises(KeyboardInterrupt):
        raised(KeyboardInterrupt())


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


@pytest.fixture
def checkout(tmp_path: Path) -> Subject:
    """A checkout with nothing in it."""
    for folder in ("src/parallelmind", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return Subject(package=tmp_path / "src" / "parallelmind")


def test_imports_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "damaged_package"
    files = {
        "__init__.py": "__all__ = ['Engine', 'Gone']\nEngine = None\n",
        "jobs/__init__.py": "",
        "jobs/view.py": "import damaged_package.jobs.lost\n",
        "engine/__init__.py": "",
        "engine/whole.py": "",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.syspath_prepend(package.parent)
    damaged = Subject(package=package)
    assert_fails(result("imports", "damaged_package", damaged), "it has no Gone")
    assert_fails(result("imports", "damaged_package.jobs", damaged), "damaged_package.jobs.lost")
    assert result("imports", "damaged_package.engine", damaged).found == "1 modules"


def test_modules_of_an_extra_that_is_not_installed_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "parallelmind.server.app", raising=False)
    found = result("imports", "parallelmind.server")
    assert found.status == "skip"
    assert "pip install 'parallelmind[serve]'" in found.found


def test_the_extra_of_a_module() -> None:
    declared = Declared.by(DEFAULT)
    names = ("bitsandbytes.nn", "PIL.Image", "torch", "not_to_be_had")
    assert [declared.extra_of_module(name) for name in names] == ["quant", "show", None, None]


def test_documented_imports_that_fail(checkout: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout.checkout_root()
    (root / "model").mkdir()
    (root / "model" / "__init__.py").touch()
    (root / "model" / "model_lora.py").write_text("apply_lora = load_lora = None\n")
    for name in ("model.model_lora", "model"):  # as if this process had not imported them yet; undone afterwards
        importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
    assert_fails(result("imports", "model.model_lora", checkout), "it has no save_lora")
    # What is imported is that of this checkout, not of the one examined.
    assert_fails(result("imports", "parallel.columnar", checkout), "another program's")


def pretend_to_install(site: Path, name: str, version: str, declared: str = "") -> None:
    """What pip leaves in site-packages of a package, without the package."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{declared}")


def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    pretend_to_install(tmp_path, "torch", "2.1.0")
    pretend_to_install(tmp_path, "fastapi", "0.1")
    found = results("versions")
    assert_fails(found["torch"], "2.1.0", ">=2.9")
    assert_fails(found["[serve]"], "fastapi 0.1")
    assert found["transformers"].status == "pass"
    assert ">=3.11" in found["python"].found


def test_what_is_declared_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    declared = (
        "Requires-Python: >=9.1\nRequires-Dist: not-to-be-had>=2\nRequires-Dist: packaging>=23\n"
        "Provides-Extra: more\nRequires-Dist: nor-this>=1; extra == 'more'\n"
    )
    pretend_to_install(tmp_path, "parallelmind", "9.9", declared)
    found = results("versions")
    assert_fails(found["parallelmind"], "9.9 is what pip installed")
    assert_fails(found["python"], "; >=9.1 is needed")
    assert_fails(found["not-to-be-had"], "not installed; >=2 is needed")
    assert found["[more]"].status == "skip"
    assert "nor-this" in found["[more]"].found
    assert found["packaging"].status == "pass"


def test_a_checkout_that_is_not_installed_declares_the_same(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    found = results("versions", Subject(package=tmp_path / "src" / "not_installed"))
    installed = results("versions")
    assert list(found)[:2] == list(installed)[:2]
    assert found.pop("parallelmind").status == "skip"
    installed.pop("parallelmind")
    assert {name: one.status for name, one in found.items()} == {name: one.status for name, one in installed.items()}
    assert found["torch"] == installed["torch"]


class WrongProducts(TorchFunctionMode):
    """A processor whose products of matrices are too large by a tenth, but in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        return value * 1.1 if func is torch.Tensor.matmul and value.dtype != torch.float64 else value


def test_devices_that_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert_fails(result("devices", "device in use", with_model(device="cuda:99")), "cuda:99")
    with WrongProducts():
        assert_fails(result("devices", "cpu"), "is wrong by")
    assert result("devices", "cpu").status == "pass"
    # A machine with a GPU has to look like one without.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with_driver = Subject(driver=tmp_path)
    assert_fails(result("devices", "cuda", with_driver), "sees no GPU")
    assert result("devices", "cuda", Subject(driver=tmp_path / "none")).status == "skip"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert result("devices", "cuda", with_driver).status == "skip"


def test_documents(checkout: Subject) -> None:
    docs = checkout.checkout_root() / "docs"
    found = results("documents", checkout)
    assert {one.found for one in found.values()} == {"it is not there"}
    for one in found.values():
        assert_fails(one)
    guide = docs / "extra.md"
    guide.write_text(
        "[a](b.md) [web](https://x.example/y) [here](#there)\n```text\n[c](gone.md)\n```\n`[d](gone.md)`\n"
    )
    assert_fails(result("documents", "docs/extra.md", checkout), "1 of its links", "b.md")
    (docs / "b.md").write_text("here")
    assert result("documents", "docs/extra.md", checkout).status == "pass"
    guide.write_bytes(b"\xff\xfe")
    assert_fails(result("documents", "docs/extra.md", checkout), "UnicodeDecodeError")
    guide.write_text(" \n")
    assert_fails(result("documents", "docs/extra.md", checkout), "empty")


def test_without_a_checkout_its_parts_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()  # of another project
    wheel = Subject(package=tmp_path / "site-packages" / "parallelmind")
    assert {found.status for found in results("documents", wheel).values()} == {"skip"}
    assert result("files", "entry scripts", wheel).status == "skip"
    assert result("imports", "model.model_lora", wheel).status == "skip"


@pytest.fixture
def copied(tmp_path: Path) -> Subject:
    """A copy of the files of the package that are no code."""
    package = tmp_path / "parallelmind"
    shutil.copytree(DEFAULT.package, package, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return Subject(package=package)


def test_files_that_are_whole(copied: Subject) -> None:
    assert {name for name, found in results("files", copied).items() if found.status == "fail"} == set()


def test_files_that_are_damaged(copied: Subject) -> None:
    assets = copied.package / "assets"
    (assets / "tiny" / "model.safetensors").write_bytes((assets / "tiny" / "model.safetensors").read_bytes()[:1000])
    (assets / "demo_records.jsonl").write_text('{"main": "m", "branches": ["a", "b"], "answers": ["1"]}\n')
    (assets / "rag" / "corpus" / "numpy" / "1.16.6.jsonl").write_text('{"doc": "no path"}\n')
    (copied.package / "server" / "static" / "grid.js").unlink()
    found = results("files", copied)
    for name in ("bundled model", "demo records", "demo corpus", "web page"):
        assert_fails(found[name])
    assert "grid.js" in found["web page"].found
    (assets / "tiny" / "tokenizer.json").unlink()
    assert_fails(result("files", "bundled model", copied), "tokenizer.json")


def test_scripts_that_are_missing_or_broken(checkout: Subject) -> None:
    root = checkout.checkout_root()
    assert_fails(result("files", "entry scripts", checkout), f"{SCRIPTS[0]} is not there")
    for name in SCRIPTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    assert result("files", "entry scripts", checkout).found == f"{len(SCRIPTS)} scripts"
    (root / "scripts" / "test_inference.sh").write_text("if")
    assert_fails(result("files", "entry scripts", checkout), "scripts/test_inference.sh")
    (root / "parallel_generate.py").write_text("def")
    assert_fails(result("files", "entry scripts", checkout), "SyntaxError")


def test_a_folder_that_cannot_be_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").touch()
    assert_fails(result("files", "output folder"), f"{tmp_path / 'out'} cannot be written in")
