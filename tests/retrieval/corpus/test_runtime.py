"""Packages that misbehave when they are imported: the inspection ends, and what can be known is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from parallelmind.retrieval.corpus.objects import PackageObject
from parallelmind.retrieval.corpus.runtime import RuntimeReport, inspect_package, read_report
from parallelmind.retrieval.corpus.sandbox.running import Limits
from tests.retrieval.corpus.sandboxes import sandbox_or_none
from tests.retrieval.corpus.wheels import SHAPES, write_package


def inspect(tmp_path: Path, files: dict[str, str], name: str = "odd", **limits: float) -> RuntimeReport:
    package = write_package(tmp_path / "package", files)
    given = Limits(**{"seconds": 60.0, **limits})  # type: ignore[arg-type]
    return inspect_package(sandbox_or_none(), sys.executable, package, name, tmp_path, given)


def by_name(report: RuntimeReport) -> dict[str, PackageObject]:
    return {name: item for item in report.objects for name in item.names}


def test_objects_have_all_names_that_reach_them(tmp_path: Path) -> None:
    report = inspect(tmp_path, SHAPES, "shapes")
    assert (report.failure, report.module_errors) == ("", {})
    names = by_name(report)
    assert names["shapes.area"].names == {"shapes.area", "shapes.surface"}
    assert names["shapes.area"].path == "shapes._impl.area"
    assert names["shapes.area"].signature == "(shape, *, exact=False)"
    assert names["shapes.Circle.scale"].signature == "(factor: float = 2.0) -> Shape"
    assert names["shapes.Circle.move"].doc == "Put it elsewhere."
    assert names["shapes.Circle.diameter"].type == "property"
    assert names["shapes.double"].names == {"shapes.double", "shapes.extra.double"}
    assert names["shapes"].type == "module"
    assert not any("_hidden" in name or "tests" in name for name in names)


def test_texts_made_at_run_time(tmp_path: Path) -> None:
    code = """
        def documented(doc):
            def decorate(function):
                function.__doc__ = doc.format(klass="DataFrame")
                return function
            return decorate

        @documented("Group a {klass}. 分组")
        def group(by=None, *, sort=True): ...

        __all__ = ["group", "lazy"]

        def __getattr__(name):
            if name == "lazy":
                return group
            raise AttributeError(name)
        """
    names = by_name(inspect(tmp_path, {"odd/__init__.py": code}))
    assert (names["odd.group"].doc, names["odd.group"].signature) == (
        "Group a DataFrame. 分组",
        "(by=None, *, sort=True)",
    )
    assert names["odd.lazy"] is names["odd.group"]


def test_instances_accessors_and_aliased_modules(tmp_path: Path) -> None:
    code = '''
        from odd import inner as char

        class Methods:
            """String methods."""
            def contains(self, text):
                """Whether it is in there."""

        class Accessor:
            def __get__(self, instance, owner):
                return Methods if instance is None else Methods()

        class Series:
            str = Accessor()

        class Distribution:
            """Any distribution."""
            def pdf(self, x):
                """Density."""

        norm = Distribution()
        '''
    names = by_name(inspect(tmp_path, {"odd/__init__.py": code, "odd/inner.py": "def add(a, b): ...\n"}))
    assert names["odd.Series.str.contains"].names == {"odd.Series.str.contains", "odd.Methods.contains"}
    assert names["odd.norm.pdf"].names == {"odd.norm.pdf", "odd.Distribution.pdf"}
    assert (names["odd.norm"].type, names["odd.norm"].doc) == ("object", "Any distribution.")
    assert names["odd.char.add"].names == {"odd.char.add", "odd.inner.add"}


GOOD = {"odd/good.py": 'def f():\n    """Here."""\n'}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("import missing_thing", "ModuleNotFoundError: No module named 'missing_thing'"),
        ("x = ", "SyntaxError"),
        ("import os; os._exit(0)", "ended the process"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL); import ctypes; ctypes.string_at(0)",
            "ended the process",
        ),
        ("x = bytearray(10**11)", "MemoryError"),
    ],
)
def test_one_bad_module(tmp_path: Path, code: str, error: str) -> None:
    report = inspect(tmp_path, {"odd/__init__.py": "", "odd/bad.py": code + "\n", **GOOD})
    assert report.failure == ""
    assert report.module_errors["odd.bad"].startswith(error)
    assert by_name(report)["odd.good.f"].doc == "Here."


@pytest.mark.parametrize(
    ("code", "failure", "seconds"),
    [
        ("raise SystemExit(3)", "importing odd failed: SystemExit: 3", 60.0),
        ("import odd.good\nraise ValueError(3)", "importing odd failed: ValueError: 3", 60.0),
        ("import os; os._exit(7)", "the inspection in odd ended with code 7", 60.0),
        ("while True: pass", "the inspection in odd took too long and was stopped", 2.0),
        ("import time; time.sleep(1000)", "the inspection in odd took too long and was stopped", 2.0),
    ],
)
def test_a_bad_package(tmp_path: Path, code: str, failure: str, seconds: float) -> None:
    report = inspect(tmp_path, {"odd/__init__.py": code + "\n", **GOOD}, seconds=seconds)
    assert report.failure.startswith(failure)
    assert report.objects == []
    assert report.namespaces == []  # half a package proves nothing


def test_exits_of_what_is_lazy_or_shown(tmp_path: Path) -> None:
    code = '''
        class Odd:
            def __repr__(self):
                raise KeyboardInterrupt
        def f(odd=Odd()):
            """Here."""
        def __getattr__(name):
            raise SystemExit(name)
        __all__ = ["f", "lazy"]
        '''
    report = inspect(tmp_path, {"odd/__init__.py": code})
    assert report.failure == ""
    assert (by_name(report)["odd.f"].doc, by_name(report)["odd.f"].signature) == ("Here.", "")


@pytest.mark.parametrize("name", ["json", "typing", "sys"])
def test_modules_of_python_are_not_taken_for_the_package(tmp_path: Path, name: str) -> None:
    """Backports have such names; what is in use here is another version."""
    report = inspect(tmp_path, {f"{name}.py": 'def f():\n    """Here."""\n'}, name)
    assert report.failure == f"importing {name} failed: ImportError: Python has a module of its own of this name"
    assert report.objects == []


def test_a_fork_is_described_once(tmp_path: Path) -> None:
    code = '''
        import os
        os.fork()
        def f():
            """Once."""
        '''
    report = inspect(tmp_path, {"odd/__init__.py": code})
    assert [item.doc for item in report.objects if item.type == "function"] == ["Once."]


def test_the_description_is_not_trusted(tmp_path: Path) -> None:
    head = {"python": "3", "errors": {}, "warnings": {}}
    space = {"kind": "module", "name": "odd", "names": {"f": "o0"}}
    row = {"path": "odd.f", "names": ["odd.f"], "type": "function", "doc": "D", "signature": ""}
    end = {"complete": True}

    def read(*lines: object) -> RuntimeReport:
        path = tmp_path / "objects.jsonl"
        objects = [{"object": line} if isinstance(line, dict) and "path" in line else line for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in objects))
        return read_report(path, "odd")[0]

    assert [item.path for item in read(head, row, end).objects] == ["odd.f"]
    # Names of other packages are dropped; a row of nothing else, or of anything unexpected, ends the report.
    assert read(head, {**row, "names": ["odd.f", "numpy.array", "odd.a/../b"]}, end).objects[0].names == {"odd.f"}
    for bad in (
        {**row, "names": ["numpy.array"]},
        {**row, "path": "numpy.array"},
        {**row, "path": "odd.../x"},
        {**row, "type": "evil"},
        {**row, "doc": 5},
        {**row, "members": "abc", "names": "odd.f"},
        {**row, "members": [5]},
        {**row, "members": 5},
        {**row, "type": ["function"]},
        {"path": "odd.f"},
        [],
        "text",
    ):
        report = read(head, row, bad, end)
        assert "unusable description" in report.failure
        assert report.objects == []
    assert read(head, {**row, "number": 0}, {"namespace": space}, end).namespaces[0].names == {"f": "o0"}
    for bad_space in (
        {**space, "names": {"f": "o1"}},
        {**space, "names": {"f": "s1"}},
        {**space, "names": {"f": "x"}},
        {**space, "names": ["f"]},
        {**space, "bases": [7]},
        {**space, "bases": [-1]},
        {**space, "object": 3},
        {**space, "kind": "evil"},
        {**space, "open": "x"},
        {**space, "instance": [5]},
        [],
    ):
        assert "unusable description" in read(head, {**row, "number": 0}, {"namespace": bad_space}, end).failure
    assert "the end is missing" in read(head, row).failure
    # What is shown commands no terminal, and can be written to a file.
    odd = {"python": "3\x1b[2J", "errors": {"odd.x": "\x1b]0;title\x07 \ud800"}, "warnings": {}}
    mark = "\N{REPLACEMENT CHARACTER}"
    assert read(odd, end).module_errors == {"odd.x": f"{mark}]0;title{mark} {mark}"}
    assert "\x1b" not in read(head, {**row, "type": "\x1b"}, end).failure
    assert read(5).failure
