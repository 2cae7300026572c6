"""Requirements files, and what `pip freeze` prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.project.reading import read_project, read_projects
from parallelmind.retrieval.project.requirements import parse_requirements


def versions(text: str) -> dict[str, str]:
    return dict(parse_requirements(text, "given").versions)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("numpy==1.26.4", {"numpy": "1.26.4"}),
        ("  NumPy == 1.26.4  # pinned", {"numpy": "1.26.4"}),
        ("scikit_learn[all,more]>=1.2,<2", {"scikit-learn": "<2,>=1.2"}),
        ("requests", {"requests": ""}),
        ("a~=1.4\nb===2.0\nc==3.*\nd!=4", {"a": "~=1.4", "b": "2.0", "c": "==3.*", "d": "!=4"}),
        ("torch==2.9.0+cpu", {"torch": "2.9.0"}),
        ("a==1 ; python_version > '3'\nb==1; python_version < '3'\nc==1; extra == 'x'", {"a": "1"}),
        (
            f"a==1; python_version == '{sys.version_info[0]}.{sys.version_info[1]}'\na==2; python_version < '3'",
            {"a": "1"},
        ),
        ("a==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nb==2", {"a": "1", "b": "2"}),
        ("a==\\\n1", {"a": "1"}),
        ("# a comment\n\n--index-url https://example.org/simple\n-f links\n--no-binary :all:\na==1", {"a": "1"}),
        ("a>=1\na<2\na==1.5", {"a": "1.5"}),
        ("a @ https://example.org/a-1.2-py3-none-any.whl", {"a": "1.2"}),
        ("./wheels/a_b-1.2.tar.gz\nhttps://example.org/c-3.0-py3-none-any.whl#sha256=00", {"a-b": "1.2", "c": "3.0"}),
        ("# Editable install with no version control (box==1.2)\n-e /home/x/box", {"box": "1.2"}),
        ("", {}),
    ],
)
def test_lines(text: str, wanted: dict[str, str]) -> None:
    assert versions(text) == wanted


def test_what_has_no_version_is_told() -> None:
    found = parse_requirements("a @ git+https://example.org/a@main\n-e git+https://example.org/b#egg=b\n./c", "given")
    assert not found.versions
    assert set(found.skipped) == {"a", "b", "./c"}
    assert "whose version is not written" in found.skipped["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a==1\nnumpy=1.2", r"given: line 2: numpy=1\.2 is not a requirement"),
        ("a==1\n\na==2", r"given: line 3: a==2 contradicts a==1 of given: line 1; keep one of them"),
        ("a==one two", "line 1: a==one two is not a requirement"),
        ("a; os_name = 'x'", "is not a requirement"),
        ("-r other.txt", "line 1 includes a file"),
        ("--constraint=other.txt", "line 1 includes a file"),
        ("a" * 10_000, "has 10,000 characters"),
        ("a; " + "(" * 1_900 + "os_name=='x'", "is not a requirement"),
        ("\ud800", "is not a requirement"),
    ],
)
def test_wrong_lines_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_requirements(text, "given")


def test_files_that_include_others(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text("-r more/base.txt\n-cpins.txt\nb>=1\n")
    (tmp_path / "more/base.txt").write_text("a\n-r deeper.txt\n")
    (tmp_path / "more/deeper.txt").write_text("c==3\n")
    (tmp_path / "pins.txt").write_text("a==1.5\nb==2\nd==9\n")
    assert read_project(str(tmp_path / "requirements.txt")).versions == {"a": "1.5", "b": "2", "c": "3"}
    assert read_project(str(tmp_path)).versions == {"a": "1.5", "b": "2", "c": "3"}
    (tmp_path / "more/deeper.txt").write_text("c==\n")
    with pytest.raises(DataError, match=r"deeper\.txt: line 1: c== is not a requirement"):
        read_project(str(tmp_path / "requirements.txt"))
    (tmp_path / "more/deeper.txt").write_text("-r ../requirements.txt\n")
    with pytest.raises(DataError, match=r"is included in itself: .*take one of the -r lines out"):
        read_project(str(tmp_path / "requirements.txt"))
    (tmp_path / "more/deeper.txt").write_text("-r nothing.txt\n")
    with pytest.raises(DataError, match=r"cannot read .*nothing\.txt"):
        read_project(str(tmp_path / "requirements.txt"))
    (tmp_path / "more/deeper.txt").write_text("-r https://example.org/x.txt\n")
    with pytest.raises(DataError, match=r"deeper\.txt: line 1 includes https"):
        read_project(str(tmp_path / "requirements.txt"))


def test_encodings(tmp_path: Path) -> None:
    file = tmp_path / "frozen.txt"
    for encoding in ("utf-16", "utf-8-sig"):
        file.write_text("numpy==1.26.4\n", encoding=encoding)
        assert read_project(str(file)).versions == {"numpy": "1.26.4"}
    file.write_bytes(b"numpy==1.26.4 # \xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_project(str(file))


def test_of_several_the_first_counts(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a==1\n")
    (tmp_path / "two.txt").write_text("a==2\nb==2\n")
    assert read_projects((str(tmp_path / "one.txt"), str(tmp_path / "two.txt"))).versions == {"a": "1", "b": "2"}


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; name a lockfile"):
        read_project(str(tmp_path / "nothing.txt"))
    with pytest.raises(DataError, match=r"has none of uv\.lock"):
        read_project(str(tmp_path))
    (tmp_path / "other.lock").write_text("")
    with pytest.raises(DataError, match=r"other\.lock is none of uv\.lock"):
        read_project(str(tmp_path / "other.lock"))
