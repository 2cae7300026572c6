"""Lockfiles, as their tools write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.project.reading import read_project

UV = """
version = 1
requires-python = ">=3.11"

[[package]]
name = "mine"
version = "0.1.0"
source = { editable = "." }
dependencies = [{ name = "numpy" }]

[[package]]
name = "numpy"
version = "1.26.4"
source = { registry = "https://example.org/simple" }
resolution-markers = ["python_full_version < '3.0'"]

[[package]]
name = "numpy"
version = "2.2.6"
source = { registry = "https://example.org/simple" }
resolution-markers = ["python_full_version >= '3.0' and sys_platform == 'none'", "python_full_version >= '3.0'"]

[[package]]
name = "Jinja2"
version = "3.1.4"
source = { registry = "https://example.org/simple" }
"""
POETRY = """
[[package]]
name = "numpy"
version = "1.26.4"
optional = false
python-versions = ">=3.9,<3.10 || >=3.11"

[[package]]
name = "numpy"
version = "1.21.0"
optional = false
python-versions = "<3.8"

[[package]]
name = "click"
version = "8.1.7"
markers = "python_version >= '3.8'"

[metadata]
lock-version = "2.1"
"""
PDM = """
[[package]]
name = "requests"
version = "2.32.3"
extras = ["socks"]

[[package]]
name = "requests"
version = "2.32.3"
"""
PYLOCK = """
lock-version = "1.0"
[[packages]]
name = "attrs"
version = "25.1.0"
marker = "python_version >= '3'"
[[packages]]
name = "from-git"
[packages.vcs]
type = "git"
"""
PIPFILE = """
{"default": {"flask": {"version": "==3.0.0"}, "old": {"version": "==1", "markers": "python_version < '3'"}},
 "develop": {"pytest": {"version": "==8.0.0", "index": "pypi"}, "local": {"path": ".", "editable": true}}}
"""


@pytest.mark.parametrize(
    ("name", "text", "versions"),
    [
        ("uv.lock", UV, {"jinja2": "3.1.4", "numpy": "2.2.6"}),
        ("poetry.lock", POETRY, {"click": "8.1.7", "numpy": "1.26.4"}),
        ("pdm.lock", PDM, {"requests": "2.32.3"}),
        ("pylock.toml", PYLOCK, {"attrs": "25.1.0"}),
        ("pylock.dev.toml", PYLOCK, {"attrs": "25.1.0"}),
        ("Pipfile.lock", PIPFILE, {"flask": "3.0.0", "pytest": "8.0.0"}),
        (
            "pyproject.toml",
            '[project]\ndependencies = ["numpy>=1.20,<2", "click"]',
            {"click": "", "numpy": "<2,>=1.20"},
        ),
        ("pyproject.toml", "[tool.x]\n", {}),
    ],
)
def test_versions(name: str, text: str, versions: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_project(str(tmp_path / name)).versions == versions


def test_the_first_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pdm.lock").write_text(PDM)
    (tmp_path / "requirements.txt").write_text("a==1")
    assert read_project(str(tmp_path)).source == str(tmp_path / "pdm.lock")


def test_several_versions_for_this_system(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").write_text(UV.replace("python_full_version < '3.0'", "python_full_version > '3.0'"))
    found = read_project(str(tmp_path / "uv.lock"))
    assert found.versions == {"jinja2": "3.1.4"}
    assert "for this system 1.26.4, 2.2.6" in found.skipped["numpy"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("uv.lock", "[[package]\n", r"uv\.lock is not TOML: .*line 1"),
        ("uv.lock", "package = 1\n", r"uv\.lock: package is a number \(1\); expected tables"),
        ("uv.lock", "package = [1]\n", r"uv\.lock: \[\[package\]\] number 1 is a number"),
        ("uv.lock", '[[package]]\nversion = "1"\n', r"number 1: name is null; expected a text"),
        ("uv.lock", '[[package]]\nname = "a"\nversion = 1\n', r"number 1: version is a number \(1\); expected a text"),
        (
            "pdm.lock",
            PDM.replace("2.32.3", "1", 1).replace("extras", 'marker = "x = 1"\nextras'),
            "not an environment marker",
        ),
        ("Pipfile.lock", "{", r"Pipfile\.lock is not JSON"),
        ("Pipfile.lock", "[]", "'default' is null; expected an object"),
        ("Pipfile.lock", '{"default": {"a": 1}}', r"default\.a is a number"),
        ("Pipfile.lock", '{"default": {"a": {"version": "1"}}}', r"default\.a: '1' is not a version such as"),
        ("pyproject.toml", "[project]\ndependencies = 1", r"project\.dependencies is a number \(1\); expected a list"),
        ("pyproject.toml", '[project]\ndependencies = ["a", "b ="]', r"project\.dependencies: line 2: b = is not"),
    ],
)
def test_wrong_files_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_project(str(tmp_path / name))
