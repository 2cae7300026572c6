"""`parallelmind corpus build`, `list` and `show`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from tests.retrieval.corpus.wheels import SHAPES, make_wheel


@pytest.fixture
def corpora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    for version in ("1.0", "2.0"):
        files = SHAPES | {"shapes/extra.py": SHAPES["shapes/extra.py"].replace("Twice x", f"Twice x in {version}")}
        wheel = make_wheel(tmp_path, files, version=version)
        path = tmp_path / "corpora"
        assert main(["corpus", "build", "--wheel", str(wheel), "--corpus_path", str(path), "--no_runtime"]) == 0
    capsys.readouterr()
    return tmp_path / "corpora"


def test_what_is_there(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpora / "byhand").mkdir()
    (corpora / "byhand/3.1.jsonl").write_text('{"path": "byhand.f", "doc": "Hand-made."}\n')
    assert main(["corpus", "list", "--corpus_path", str(corpora)]) == 0
    out = capsys.readouterr().out
    assert "shapes 1.0" in out
    assert "shapes 2.0" in out
    assert "byhand 3.1 was made by other means" in out


def test_one_object_in_all_versions(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "show", "shapes.double", "--corpus_path", str(corpora)]) == 0
    out = capsys.readouterr().out
    assert "shapes.extra.double(x)" in out
    assert "also shapes.double" in out
    assert out.index("Twice x in 1.0.") < out.index("Twice x in 2.0.")
    assert main(["corpus", "show", "shapes.double", "--version", "2.0", "--corpus_path", str(corpora)]) == 0
    assert "1.0" not in capsys.readouterr().out
    assert main(["corpus", "show", "shapes==2.0", "--corpus_path", str(corpora)]) == 0
    assert "shapes 2.0" in capsys.readouterr().out


def test_what_is_not_there(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "show", "shapes.dubble", "--corpus_path", str(corpora)]) == 1
    assert "has no shapes.dubble; nearest: shapes.double" in capsys.readouterr().err
    assert main(["corpus", "list", "--corpus_path", str(corpora / "nothing")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_a_package_that_cannot_be_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = make_wheel(tmp_path, SHAPES), make_wheel(tmp_path, {"../evil.py": ""}, name="bad")
    arguments = ["--corpus_path", str(tmp_path / "corpora"), "--no_runtime", "--jobs", "2"]
    assert main(["corpus", "build", "--wheel", str(bad), str(good), *arguments]) == 1
    captured = capsys.readouterr()
    assert "error: bad-1.0-py3-none-any.whl: bad-1.0-py3-none-any.whl: member '../evil.py'" in captured.err
    assert "shapes 1.0" in captured.out
    assert main(["corpus", "build", *arguments]) == 1
    assert "nothing to build" in capsys.readouterr().err


def test_neither_the_command_nor_its_processes_load_models() -> None:
    modules = "parallelmind.cli.corpus, parallelmind.retrieval.corpus.build, parallelmind.retrieval.corpus.worker"
    code = f"import sys, {modules}; print({{'torch', 'griffe', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
