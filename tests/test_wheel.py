"""The wheel and the source archive: what they contain, and that the demo and the page run from the wheel alone."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "parallelmind"


def files_of(folder: Path) -> set[str]:
    """The files of a folder, without what Python leaves there."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    [path] = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name.removeprefix("parallelmind/") for name in names if name.startswith("parallelmind/")}
    assert package == files_of(PACKAGE)
    info = {name for name in names if not name.startswith("parallelmind/")}
    assert {name.split("/", 1)[1] for name in info} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    for needed in (
        "py.typed", "assets/tiny/model.safetensors", "assets/tiny/tokenizer.json", "assets/demo_records.jsonl",
        "assets/rag/corpus/numpy/1.26.4.jsonl", "assets/rag/queries.json", "assets/rag/LICENSE.numpy.txt",
        "server/static/index.html", "server/static/app.js", "retrieval/renames.yaml", "answering/templates/answer.yaml",
    ):  # fmt: skip
        assert needed in package
    assert wheel.stat().st_size < 10 * 2**20


def test_the_source_archive_holds_what_a_checkout_does(tmp_path: Path) -> None:
    [path] = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(path) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    for needed in (
        "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "requirements.txt", "pyproject.toml",
        "docs/architecture.md", "run_from_checkout.py",
        "docs/images/draw_row.py", "scripts/inference_hf_lora.py", "tests/conftest.py", "trainer/train_hf_lora.py",
        "utils/RAGutils/queryResultByInfer/multi_worker_inference.py", "src/parallelmind/assets/tiny/model.safetensors",
    ):  # fmt: skip
        assert needed in names
    unwanted = re.compile(r"(^|/)(\.venv|\.ci|\.git|\.hypothesis|\.\w+_cache|__pycache__|out|dist|build)/")
    assert not [name for name in names if unwanted.search(name)]
    assert Path(path).stat().st_size < 20 * 2**20


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel, and reads what it needs from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages, programs = (Path(sysconfig.get_path(name, "venv", vars=paths)) for name in ("purelib", "scripts"))
    # A path in a .pth file is searched after the environment's own packages, and its own .pth files, by which the
    # checkout is installed here, are not read.
    here = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    (packages / "dependencies.pth").write_text("\n".join(dict.fromkeys(here)) + "\n")
    python = programs / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        check=True,
        timeout=300,
    )
    return programs


def environment() -> dict[str, str]:
    unset = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unset} | {"OMP_NUM_THREADS": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_of_the_wheel_is_exact_and_identical(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import parallelmind; print(parallelmind.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    shown = run(installed / "parallelmind", "demo", cwd=tmp_path)
    assert "32 records loaded = 32 answered + 0 failed" in shown
    assert "yes, all" in shown
    exact = next(line for line in shown.splitlines() if "exact answers" in line)
    assert float(exact.split("(")[1].split("%")[0]) >= 95
    assert len((tmp_path / "out" / "demo" / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 256


def test_the_doctor_of_the_wheel_skips_what_a_checkout_has(installed: Path, tmp_path: Path) -> None:
    groups = [word for group in ("files", "documents", "versions") for word in ("--only", group)]
    checks = json.loads(run(installed / "parallelmind", "doctor", "--json", *groups, cwd=tmp_path))["checks"]
    found = {(check["group"], check["name"]): check["status"] for check in checks}
    assert {status for (group, _), status in found.items() if group == "documents"} == {"skip"}
    assert found["files", "entry scripts"] == "skip"
    assert found["files", "bundled model"] == found["files", "web page"] == found["versions", "torch"] == "pass"


@pytest.mark.slow
def test_the_page_is_served_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [installed / "parallelmind", "serve", "--base_model", "tiny", "--dtype", "float32", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(lines))
        page = urllib.request.urlopen(address[0], timeout=300).read().decode()
        files = re.findall(r'(?:href|src)="(static/[^"]+)"', page)
        assert len(files) >= 5
        for name in files:
            served = urllib.request.urlopen(f"{address[0]}/{name}", timeout=300).read()
            assert served == (PACKAGE / "server" / name).read_bytes()
    finally:
        server.terminate()
        server.wait(timeout=300)
