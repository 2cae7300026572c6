"""Builds from end to end: rows, what is kept, what is built anew, and packages that cannot be built."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus import inspection
from parallelmind.retrieval.corpus.build import BuildOptions, BuildResult, _Runner, build_corpora
from parallelmind.retrieval.corpus.meta import meta_file, read_meta
from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, read_corpus
from parallelmind.retrieval.notes import notes_file, read_notes
from tests.retrieval.corpus.sandboxes import sandbox_or_none
from tests.retrieval.corpus.wheels import SHAPES, make_sdist, make_wheel


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "1", "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


@pytest.fixture(autouse=True)
def some_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or none, on a machine without; what becomes of packages there is the same."""
    monkeypatch.setattr("parallelmind.retrieval.corpus.build.find_sandbox", sandbox_or_none)


def build(tmp_path: Path, *wheels: Path, **options: Any) -> dict[str, BuildResult]:
    found = build_corpora(
        BuildOptions(wheel=list(wheels), corpus_path=tmp_path / "corpora", **options), lambda name, stage: None
    )
    return {result.name: result for result in found}


def rows(tmp_path: Path, name: str = "shapes", kind: str = "docstring") -> dict[str, CorpusRow]:
    return {row.path: row for row in read_corpus(corpus_file(tmp_path / "corpora", name, "1.0", kind))}


INSPECTOR = Path(inspection.__file__).with_name("__main__.py")
LIVING = SHAPES | {
    "shapes/living.py": """
        from shapes._impl import area

        def perimeter(shape): ...
        perimeter.__doc__ = "Written when it runs."
        """,
}


def test_a_wheel_that_runs(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, LIVING)
    mask = os.umask(0o077)  # as of a careful root, who is nobody in the sandbox
    try:
        (result,) = build(tmp_path, wheel, corpus_type="both").values()
    finally:
        os.umask(mask)
    assert (result.error, result.kept) == ("", False)
    (meta,) = result.metas
    assert meta == read_meta(meta_file(tmp_path / "corpora", "shapes", "1.0"))
    assert (meta.runtime_failure, meta.module_errors, meta.dependencies) == ("", {}, {"shapes": "1.0"})
    # Running it documents the function without a text in the files, and a class of a private module that can be had
    # where it is imported, with its method.
    assert meta.static_documented is not None
    assert meta.runtime_documented == meta.static_documented + 3
    found = rows(tmp_path)
    assert found["shapes._impl.area"] == CorpusRow(
        path="shapes._impl.area",
        aliases=("shapes.area", "shapes.surface"),
        doc="The area of a shape: 面积 ✓.",
        type="function",
        signature="(shape, *, exact=False)",
        parameters=(("shape", 1, False), ("exact", 3, True)),
        source="static",
        place="shapes/_impl.py:34-36",
        distribution="shapes",
        version="1.0",
        wheel="shapes-1.0-py3-none-any.whl",
        wheel_sha256=meta.wheel_sha256,
    )
    assert (found["shapes.living.perimeter"].doc, found["shapes.living.perimeter"].source) == (
        "Written when it runs.",
        "runtime",
    )
    assert rows(tmp_path, kind="srccodes")["shapes.living.perimeter"].doc == "def perimeter(shape): ..."
    assert sum(meta.documented.values()) == sum(bool(row.doc) for row in found.values())
    assert meta.rows == {"docstring": len(found), "srccodes": len(rows(tmp_path, kind="srccodes"))}
    assert not (tmp_path / "corpora/.work").exists()


def test_release_notes_come_from_a_source_archive_beside_the_wheel(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, SHAPES)
    (result,) = build(tmp_path, wheel, no_runtime=True).values()
    assert (result.metas[0].notes, result.metas[0].notes_archive) == (0, "")
    notes = notes_file(corpus_file(tmp_path / "corpora", "shapes", "1.0"))
    assert not notes.exists()
    make_sdist(tmp_path, SHAPES | {"CHANGES.rst": "* Remove ``shapes.square``; use ``shapes.area``.\n"})
    (result,) = build(tmp_path, wheel, no_runtime=True, overwrite=True).values()
    assert (result.metas[0].notes, result.metas[0].notes_archive) == (1, "shapes-1.0.tar.gz")
    assert [note.text for note in read_notes(notes)] == ["Remove `shapes.square`; use `shapes.area`."]
    (tmp_path / "shapes-1.0.tar.gz").write_bytes(b"damaged")
    (result,) = build(tmp_path, wheel, no_runtime=True, overwrite=True).values()
    assert (result.error, result.metas[0].notes) == ("", 0)
    assert "shapes-1.0.tar.gz is damaged" in result.metas[0].notes_failure
    assert not notes.exists()


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inspection runs in a folder of its own; relative `--corpus_path` and `--python` mean the same there."""
    make_wheel(tmp_path, LIVING)
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    wheel = Path("shapes-1.0-py3-none-any.whl")
    (result,) = build(Path(), wheel, python="./python").values()
    assert (result.error, result.metas[0].runtime_failure) == ("", "")
    assert rows(Path())["shapes.living.perimeter"].source == "runtime"


EVIL = {"loop": "while True: print('x' * 10**6)", "kill": "import os\nos._exit(1)"}


@pytest.mark.slow  # what becomes of such an inspection is in test_runtime.py
def test_packages_that_misbehave_are_described_by_their_files(tmp_path: Path) -> None:
    wheels = [
        make_wheel(tmp_path, {f"{name}/__init__.py": code + '\ndef f():\n    """Here."""\n'}, name=name)
        for name, code in EVIL.items()
    ]
    results = build(tmp_path, *wheels, jobs=2, timeout=4.0)
    for name in EVIL:
        (meta,) = results[f"{name}-1.0-py3-none-any.whl"].metas
        assert meta.runtime_failure
        assert rows(tmp_path, name)[f"{name}.f"].doc == "Here."


def test_nothing_runs_without_runtime(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    wheel = make_wheel(tmp_path, {"evil/__init__.py": code}, name="evil")
    assert build(tmp_path, wheel, no_runtime=True)[wheel.name].metas[0].runtime_documented is None
    assert not marker.exists()
    # Asked for, it is not what a build without it has made: built anew, and this time the code runs.
    assert build(tmp_path, wheel, unsafe_inspection=True)[wheel.name].kept is False
    assert marker.exists()
    assert "evil" not in sys.modules


def test_one_bad_archive_does_not_stop_the_others(tmp_path: Path) -> None:
    good = make_wheel(tmp_path, SHAPES)
    bad = make_wheel(tmp_path, {"../evil.py": ""}, name="bad")
    deep = make_wheel(tmp_path, {"deep/__init__.py": "", "deep/bad.py": "x = " + "-" * 200_000 + "1"}, name="deep")
    empty = make_wheel(tmp_path, {}, name="empty")
    results = build(tmp_path, bad, deep, empty, good, no_runtime=True)
    assert "leaves the target folder" in results[bad.name].error
    assert "holds no Python package" in results[empty.name].error
    assert results[good.name].error == ""
    assert "shapes._impl.area" in rows(tmp_path)
    assert results[deep.name].metas[0].unread_files == ["deep/bad.py"]


def test_a_source_archive_is_read_and_not_run(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, SHAPES)
    (meta,) = build(tmp_path, archive)[archive.name].metas
    assert meta.runtime_failure == "a source archive is not built"
    assert "shapes._impl.area" in rows(tmp_path)
    assert not (tmp_path / "setup_ran").exists()


def would_keep(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> bool:
    """Whether a build would keep what there is; nothing is built."""
    with monkeypatch.context() as patched:
        patched.setattr(_Runner, "run", lambda self, name, task: BuildResult(name, []))
        return build(tmp_path, wheel, no_runtime=True, **options)[wheel.name].kept


def test_finished_versions_are_kept_and_half_finished_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path, SHAPES)
    build(tmp_path, wheel, no_runtime=True)
    corpus, meta = corpus_file(tmp_path / "corpora", "shapes", "1.0"), meta_file(tmp_path / "corpora", "shapes", "1.0")
    before = corpus.read_bytes()
    assert build(tmp_path, wheel, no_runtime=True)[wheel.name].kept
    assert not build(tmp_path, wheel, no_runtime=True, corpus_type="both")[wheel.name].kept
    assert build(tmp_path, wheel, no_runtime=True, corpus_type="srccodes")[wheel.name].kept
    assert not would_keep(tmp_path, wheel, monkeypatch, overwrite=True)
    # Killed before the end: there is no description yet, or not every file.
    meta.unlink()
    corpus.write_text("half")
    assert not build(tmp_path, wheel, no_runtime=True)[wheel.name].kept
    assert corpus.read_bytes() == before
    corpus.unlink()
    assert not would_keep(tmp_path, wheel, monkeypatch)
    # The same name and version, other content.
    changed = make_wheel(tmp_path, SHAPES | {"shapes/new.py": "def fresh(): ..."})
    assert not build(tmp_path, changed, no_runtime=True)[wheel.name].kept
    assert "shapes.new.fresh" in rows(tmp_path)


def test_no_package_takes_the_place_of_another_ones(tmp_path: Path) -> None:
    evil = make_wheel(tmp_path, {"evil/__init__.py": "", "shapes/__init__.py": '"""Poison."""'}, name="evil")
    build(tmp_path, make_wheel(tmp_path, SHAPES), no_runtime=True)
    before = rows(tmp_path)
    error = build(tmp_path, evil, no_runtime=True, overwrite=True)[evil.name].error
    assert "installs a package named shapes, and" in error
    assert "has 1.0 of it from shapes; choose another --corpus_path" in error
    assert rows(tmp_path) == before
    assert not (tmp_path / "corpora/evil").exists()


def inspecting(pid: int) -> list[psutil.Process]:
    """The processes of a build, once one of them is the inspection; waits for it."""
    for _ in range(1200):
        found = psutil.Process(pid).children(recursive=True)
        for process in found:
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[4:5] == [str(INSPECTOR)]:
                    return found
        time.sleep(0.1)
    raise AssertionError("no inspection")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_killed_in_the_middle(tmp_path: Path, number: signal.Signals) -> None:
    corpora = tmp_path / "corpora"
    wheel = make_wheel(tmp_path, {"slow/__init__.py": "import time\ntime.sleep(600)\n"}, name="slow")
    mode = [] if sandbox_or_none().kind else ["--unsafe_inspection"]
    command = [sys.executable, "-m", "parallelmind", "corpus", "build", "--wheel", str(wheel), *mode, "--corpus_path"]
    process = subprocess.Popen([*command, str(corpora)], stderr=subprocess.DEVNULL)
    started = inspecting(process.pid)
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert len(started) >= 2
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert not list(corpora.glob("slow/*.json*"))
    done = make_wheel(tmp_path, {"slow/__init__.py": 'def f():\n    """Here."""\n'}, name="slow")
    assert build(tmp_path, done, no_runtime=True)[wheel.name].error == ""
    assert rows(tmp_path, "slow")["slow.f"].doc == "Here."
    assert not (corpora / ".work").exists() or number == signal.SIGKILL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to build"),
        ({"packages": ["a b"]}, "is not a package"),
        ({"packages": ["a"], "jobs": 0}, "--jobs is 0"),
        ({"packages": ["a"], "timeout": 0}, "--timeout is 0"),
        ({"packages": ["a"], "timeout": float("nan")}, "--timeout is nan"),
        ({"packages": ["a"], "python": "/nowhere/python"}, "--python /nowhere/python is not"),
        ({"packages": ["a"], "corpus_type": "x"}, "--corpus_type is 'x'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        BuildOptions(corpus_path=tmp_path, **options)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "corpora").write_text("a file")
    with pytest.raises(SettingsError, match="--corpus_path"):
        build(tmp_path, make_wheel(tmp_path, SHAPES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "names"),
    [
        ("numpy==1.26.4", ("numpy.array", "numpy.add", "numpy.linalg.norm", "numpy.ndarray.shape")),
        ("numpy==1.16.6", ("numpy.array", "numpy.add", "numpy.linalg.norm", "numpy.ndarray.shape")),
        ("pandas==2.2.2", ("pandas.read_csv", "pandas.DataFrame.groupby", "pandas.Timestamp.floor")),
    ],
)
def test_real_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: str, names: tuple[str, ...]) -> None:
    for name in ("PIP_NO_INDEX", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name)
    (result,) = build_corpora(BuildOptions(packages=[request_], corpus_path=tmp_path), lambda name, stage: None)
    if "no package index can be asked" in result.error or "no distribution" in result.error:
        pytest.skip(f"the package index cannot be reached: {result.error}")
    package, _, version = request_.partition("==")
    documented = {
        name: row.doc for row in read_corpus(corpus_file(tmp_path, package, version)) for name in row.names if row.doc
    }
    assert [len(documented.get(name, "")) > 20 for name in names] == [True] * len(names)
    meta = json.loads(meta_file(tmp_path, package, version).read_text())
    assert meta["wheel"].startswith(f"{package}-{version}")
