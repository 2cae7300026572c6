"""Packages that code in the tests is checked against, described as a build does: `kiln` in two versions, `glaze`."""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from parallelmind.retrieval.corpus.merge import add_runtime, paths_by_number
from parallelmind.retrieval.corpus.rows import Origin, docstring_rows
from parallelmind.retrieval.corpus.runtime import inspect_package
from parallelmind.retrieval.corpus.sandbox.running import Limits
from parallelmind.retrieval.corpus.static import analyse
from parallelmind.retrieval.corpus_rows import corpus_file, write_corpus
from parallelmind.retrieval.namespaces import Head, names_file, write_namespaces
from tests.retrieval.corpus.sandboxes import sandbox_or_none
from tests.retrieval.corpus.wheels import write_package

VERSIONS = {"kiln": "2.0.0", "glaze": "1.0"}
_CORE = '''
    from __future__ import annotations
    import warnings
    from typing import Self

    LIMIT = 3

    class Error(Exception):
        """Any error."""

    class Base:
        def inherited(self, one): ...

    class Kiln(Base):
        """A kiln."""

        def __init__(self, size: int, *, fuel: str = "wood"):
            self.size = size

        def __enter__(self) -> Self:
            return self

        def load(self, pot, /, shelf=0, *more): ...

        @classmethod
        def of(cls, plan, *, strict=False) -> Kiln: ...

        @staticmethod
        def check(plan): ...

        @property
        def heat(self): ...

    class Shelf:
        def __enter__(self):
            return 1

    class Free:
        """Its instances have whatever is asked for."""

        def melt(self): ...

        def __getattr__(self, name):
            return name

    class Foreign(warnings.catch_warnings):
        """Derived from a class of another package, whose instances may have more."""

    def fire(pots, hours=1, *, cone=object()) -> Kiln:
        """Fire the pots."""

    def anything(*args, **kwargs): ...

    def smoke(pots=()):
        """Smoke the pots.

        .. deprecated:: 1.8
           Use :func:`fire` instead.
        """

    def parameter(a=1, b=2):
        """Do it.

        .. deprecated:: 1.2 *b* is ignored.
        """

    def add_kind(cls, name=None): ...

    compiled = type("Compiled", (), {"__call__": len})().__call__
    standard = Kiln(1)
    '''
_TOOLS = "def weigh(pot, unit='g'): ...\n"
_INIT = """
    from kiln import tools
    from kiln.core import (
        LIMIT, Error, Foreign, Free, Kiln, Shelf, add_kind, anything, compiled, fire, parameter, smoke, standard{more}
    )
    __version__ = "0"
    """
_STACK = '\ndef stack(pots):\n    """Stack pots by size."""\n'
_COOL = '        def cool(self):\n            """Cool slowly."""\n\n        @property\n'
_PACKAGES: dict[tuple[str, str], Mapping[str, str]] = {
    ("kiln", "1.9.0"): {
        "kiln/__init__.py": _INIT.format(more=", stack"),
        "kiln/core.py": _CORE.replace("        @property\n", _COOL) + _STACK.replace("\n", "\n    "),
        "kiln/tools.py": _TOOLS,
    },
    ("kiln", "2.0.0"): {
        "kiln/__init__.py": _INIT.format(more=""),
        "kiln/core.py": _CORE.replace("        def melt(self): ...\n", ""),
        "kiln/tools.py": _TOOLS + _STACK,
    },
    ("glaze", "1.0"): {
        "glaze/__init__.py": "def dip(pot): ...\nclass Bucket:\n    def stir(self, times): ...\n",
    },
}


def write_library(folder: Path) -> Path:
    """A corpus folder."""
    return shutil.copytree(_described(), folder, dirs_exist_ok=True)


@functools.cache
def _described() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="library-"))
    for (name, version), files in _PACKAGES.items():
        work = folder / f"{name}-{version}"
        package = write_package(work / "package", files)
        report = inspect_package(sandbox_or_none(), sys.executable, package, name, work, Limits(seconds=60.0))
        assert report.failure == ""
        objects, _ = add_runtime(analyse(package, name).objects, report.objects)
        path = corpus_file(folder / "corpora", name, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        origin = Origin(distribution=name, version=version, wheel="", wheel_sha256="")
        write_corpus(path, docstring_rows(objects, origin))
        head = Head(python=report.python, objects=paths_by_number(objects, report.objects), errors=report.module_errors)
        write_namespaces(names_file(path), head, report.namespaces)
        shutil.rmtree(work)
    return folder / "corpora"
