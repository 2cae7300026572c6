"""`parallelmind check-code`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from tests.retrieval.check.library import write_library


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_library(tmp_path / "corpora")
    (tmp_path / "requirements.txt").write_text("kiln==2.0.0\nglaze\nmissing==3\n")
    (tmp_path / "good.py").write_text("import kiln\nkiln.fire([])\n")
    (tmp_path / "bad.py").write_text("import kiln, missing\nkiln.bake()\nkiln.smoke()\nmissing.x\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ["--requirements", "requirements.txt", "--corpus_path", "corpora"]


def test_what_is_found(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-code", "good.py", *FLAGS]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 files, 0 findings; judged: kiln 2.0.0" in captured.err
    assert main(["check-code", "good.py", "bad.py", *FLAGS]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("bad.py:2:6: absent: kiln.bake does not exist in kiln 2.0.0 (")
    assert lines[1].startswith("bad.py:3:6: deprecated: kiln.smoke is deprecated in kiln 2.0.0 (")
    assert len(lines) == 2
    assert "uses of missing are not judged: the corpus has no missing; make it with: parallelmind corpus build" in (
        captured.err
    )
    assert main(["check-code", "bad.py", *FLAGS, "--ignore_deprecated"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-code", "bad.py", "good.py", *FLAGS, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == 2
    assert [(one["path"], one["line"], one["kind"]) for one in found["findings"]] == [
        ("bad.py", 2, "absent"),
        ("bad.py", 3, "deprecated"),
    ]
    assert found["findings"][1]["replacement"] == "kiln.fire"
    assert found["versions"] == {"kiln": "2.0.0"}
    assert list(found["not_judged"]) == ["missing"]


def test_standard_input(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"import kiln\nkiln.bake()\n")))
    assert main(["check-code", "-", *FLAGS]) == 1
    assert capsys.readouterr().out.startswith("-:2:6: absent: kiln.bake")


def test_folders(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (".hidden", "venv", "code/deep", "code/__pycache__"):
        (project / folder).mkdir(parents=True)
        (project / folder / "x.py").write_text("import kiln\nkiln.bake()\n")
    (project / "venv/pyvenv.cfg").touch()
    (project / "code/notes.txt").write_text("import (")
    assert main(["check-code", ".", *FLAGS, "--ignore_deprecated"]) == 1
    found = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in found] == ["bad.py", "code/deep/x.py"]


def test_what_cannot_be_read_is_told_and_the_rest_is_checked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "broken.py").write_text("import (")
    assert main(["check-code", "nothing.py", "broken.py", "bad.py", *FLAGS]) == 1
    captured = capsys.readouterr()
    assert "error: cannot read nothing.py: No such file or directory" in captured.err
    assert "error: broken.py: line 1 is not code of Python" in captured.err
    assert "bad.py:2:6: absent" in captured.out


def test_wrong_use(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-code", "bad.py", "--corpus_path", "corpora"]) == 1
    assert "--requirements is not given: it says which versions" in capsys.readouterr().err
    (project / "requirements.txt").write_text("kiln==2.0.0\nkiln=3\n")
    assert main(["check-code", "bad.py", *FLAGS]) == 1
    assert "requirements.txt: line 2: kiln=3 is not a requirement" in capsys.readouterr().err
    (project / "requirements.txt").write_text("kiln==1.0\n")
    assert main(["check-code", "bad.py", *FLAGS]) == 0
    assert "the corpus has no kiln 1.0 (it has 1.9.0, 2.0.0); make it with" in capsys.readouterr().err
    assert main(["check-code", "bad.py", "--requirements", "requirements.txt", "--corpus_path", "nothing"]) == 0
    assert "uses of kiln are not judged: the corpus has no kiln; make it with" in capsys.readouterr().err


def test_neither_the_command_nor_the_server_load_models() -> None:
    modules = "parallelmind.cli.check_code, parallelmind.cli.docs_server, parallelmind.server.documentation.mcp_server"
    code = f"import sys, {modules}; print({{'torch', 'griffe', 'transformers', 'fastapi'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
