"""What is installed in an environment."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.project.reading import read_project


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with a package that ends the process when it is imported."""
    folder = tmp_path / "venv"
    site = folder / "lib/python3.11/site-packages"
    (site / "Evil_Box-1.2.dist-info").mkdir(parents=True)
    (site / "Evil_Box-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: Evil.Box\nVersion: 1.2\n")
    (site / "sitecustomize.py").write_text("import os; os._exit(7)\n")
    (folder / "pyvenv.cfg").write_text("home = /nowhere\n")
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(sys.executable)
    return folder


def test_a_virtual_environment(environment: Path) -> None:
    assert read_project(str(environment)).versions == {"evil-box": "1.2"}
    assert read_project(str(environment / "bin/python")).versions == {"evil-box": "1.2"}


def test_the_current_one() -> None:
    found = read_project("current")
    assert found.versions["pytest"] == importlib.metadata.version("pytest")


def test_no_environment(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(DataError, match="is not a Python that can be asked"):
        read_project(str(program))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/pyvenv.cfg").touch()
    with pytest.raises(DataError, match="has no packages installed"):
        read_project(str(tmp_path / "empty"))
