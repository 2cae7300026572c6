"""What is there, what is not, and what cannot be known, of a package with all the ways in which names come to be."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from parallelmind.retrieval.absence import Absence, settled
from parallelmind.retrieval.corpus.merge import add_runtime, paths_by_number
from parallelmind.retrieval.corpus.rows import Origin, docstring_rows
from parallelmind.retrieval.corpus.runtime import inspect_package
from parallelmind.retrieval.corpus.sandbox.running import Limits
from parallelmind.retrieval.corpus.static import analyse
from parallelmind.retrieval.corpus_rows import corpus_file, write_corpus
from parallelmind.retrieval.existence import documented_names, look_up
from parallelmind.retrieval.namespaces import Head, names_file, write_namespaces
from parallelmind.retrieval.version_index import VersionIndex
from tests.retrieval.corpus.sandboxes import sandbox_or_none
from tests.retrieval.corpus.wheels import write_package

ODD = {
    "other/__init__.py": '''
        class Request:
            """A request of another package."""
            def json(self):
                """Its body."""
        OK = 200
        ''',
    "other/status.py": "CREATED = 201\ndef name(code): ...\n",
    "odd/__init__.py": '''
        import enum, warnings
        from other import Request as Request
        from other import status as status
        from odd import lazy, table, anything, shapes, optional_user
        from odd.shapes import Circle

        class Colour(enum.Enum):
            RED = 1

        def __getattr__(name):
            if name in _OLD:
                warnings.warn(f"odd.{name} is deprecated, use odd.new", DeprecationWarning)
                return print
            raise AttributeError(name)

        _OLD = {"old", "older"}

        class Proxy:
            """Stands for nothing yet."""
            def __getattribute__(self, name):
                raise RuntimeError("nothing yet")
            __class__ = property(lambda self: 1 / 0)

        class Meta(type):
            @property
            def OLDEST(cls):
                warnings.warn("Use odd.new instead of OLDEST", DeprecationWarning)

        class Made(metaclass=Meta):
            pass

        class Holder:
            made = Made

        proxy = Proxy()
        if False:
            def only_written(): "Never defined."
        ''',
    "odd/lazy.py": '''
        __all__ = ["made", "broken"]
        def __getattr__(name):
            if name == "made":
                return lambda: 1
            raise AttributeError(name)
        ''',
    "odd/table.py": '''
        class Table:
            def __getattr__(self, name):
                return name
        table = Table()
        ''',
    "odd/anything.py": "def __getattr__(name):\n    return name\n",
    "odd/optional_user.py": "def f(first, *, second=2): ...\n",
    "odd/gone.py": '''
        def __getattr__(name):
            if name == "ship":
                raise AttributeError("ship was removed in 2.0, use \\x1b[31mboat")
            raise AttributeError(name)
        ''',
    "odd/gruff.py": '''
        words = ["ship", "boat"]
        def __getattr__(name):
            raise AttributeError("all of it was removed, use something else")
        ''',
    "odd/later.py": '''
        import sys
        from typing import TYPE_CHECKING
        from odd.made import keep
        if TYPE_CHECKING:
            from odd.shapes import Circle as Drawn
        try:
            from nowhere_to_be_found import Console
        except ImportError:
            pass
        if sys.version_info < (3,):
            def ancient_only(): ...

        class Units:
            def __getattr__(self, name):
                if len(name) > 5 and name[-5:] == "meter":
                    return 1
                raise AttributeError(name)

        units = Units()

        class Former:
            def __getattr__(self, name):
                if name in ("first", "second") or name == "third":
                    return 1
                raise AttributeError(f"there is no {name}")

        class Set:
            @keep
            def __init__(self):
                self._size = 1

            def fill(self):
                setattr(self, "by_setattr", 1)
                object.__setattr__(self, "by_object", 1)
                self.__dict__.update(by_update=1)
                vars(self)["by_vars"] = 1
        ''',
    "odd/made.py": '''
        import functools
        def keep(function):
            @functools.wraps(function)
            def inner(*args, **options):
                return function(*args, **options)
            return inner
        ''',
    "odd/migrations/__init__.py": "from odd.shapes import Circle\n",
    "odd/migrations/0001_first.py": "class Migration: ...\n",
    "odd/needs.py": "import nowhere_to_be_found\ndef g(): ...\n",
    "odd/shapes.py": '''
        from __future__ import annotations
        from typing import NamedTuple
        import collections

        class Shape(dict):
            """Any shape.

            Attributes
            ----------
            weight : float
                In grams.
            """
            unit: str

            def __init__(self):
                self.area = 0

            def _private(self): ...

            @property
            def border(self): ...

            def __call__(self): ...

        class Circle(Shape):
            def __init__(self):
                super().__init__()
                self.radius = 1

        class Point(NamedTuple):
            x: int
        ''',
}  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionIndex]:
    folder = tmp_path_factory.mktemp("odd")
    package = write_package(folder / "package", ODD)
    report = inspect_package(sandbox_or_none(), sys.executable, package, "odd", folder, Limits(seconds=60.0))
    assert report.failure == ""
    objects, _ = add_runtime(analyse(package, "odd").objects, report.objects)
    path = corpus_file(folder, "odd", "1.0")
    path.parent.mkdir()
    write_corpus(path, docstring_rows(objects, Origin(distribution="odd", version="1.0", wheel="", wheel_sha256="")))
    head = Head(python=report.python, objects=paths_by_number(objects, report.objects), errors=report.module_errors)
    write_namespaces(names_file(path), head, report.namespaces)
    index = VersionIndex(path, folder / "index", package="odd", version="1.0")
    yield index
    index.close()


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("odd", "present"),
        ("odd.shapes.Circle", "present"),
        ("odd.Circle", "present"),
        ("odd.Circle.border", "present"),  # inherited
        ("odd.Circle.get", "present"),  # from the standard library
        ("odd.Circle.mro", "present"),  # from the class of the class
        ("odd.Circle.__call__", "present"),
        ("odd.Circle.__reduce__", "present"),  # from object
        ("odd.Circle._private", "present"),
        ("odd.Circle.radius", "present"),  # of instances
        ("odd.Circle.area", "present"),
        ("odd.Circle.unit", "present"),
        ("odd.Circle.weight", "unknown"),  # documented, and nowhere set
        ("odd.Circle.volume", "absent"),
        ("odd.Circle.border.fget", "unknown"),
        ("odd.shapes.Point.x", "present"),
        ("odd.shapes.Point._asdict", "present"),
        ("odd.shapes.collections", "present"),
        ("odd.shapes.collections.OrderedDict", "unknown"),  # of another package
        ("odd.Request", "present"),
        ("odd.Request.json", "present"),
        ("odd.Request.xml", "absent"),
        ("odd.status.CREATED", "present"),
        ("odd.status.LOST", "absent"),
        ("odd.Colour.RED", "present"),
        ("odd.Colour.BLUE", "absent"),
        ("odd.Colour.__members__", "present"),
        ("odd.old", "present"),
        ("odd.ancient", "absent"),  # its __getattr__ was asked
        ("odd.only_written", "unknown"),  # the files have it, for some other case
        ("odd.lazy.made", "present"),
        ("odd.lazy.broken", "unknown"),  # listed, and raises
        ("odd.lazy.more", "absent"),
        ("odd.table.table.anything", "present"),
        ("odd.anything.at_all", "present"),
        ("odd.optional_user.f.second", "unknown"),  # a parameter
        ("odd.needs", "present"),  # by its files, and cannot be imported here
        ("odd.needs.g", "present"),  # by its files, without proof
        ("odd.needs.h", "unknown"),
        ("odd.nowhere.at.all", "absent"),
        ("odd.gone.ship", "absent"),
        ("odd.gruff.ship", "absent"),
        ("odd.migrations.Circle", "present"),  # beside a module whose name no code can write
        ("odd.proxy", "present"),
        ("odd.proxy.anything", "unknown"),  # what it stands for may have it
        ("odd.Holder.made", "present"),
        ("odd.later.Drawn", "absent"),  # only for type checkers
        ("odd.later.Console", "unknown"),  # with what is not installed here
        ("odd.later.ancient_only.__doc__", "unknown"),
        ("odd.later.nothing.__doc__", "absent"),
        ("odd.later.Set._size", "present"),  # assigned in a method that a decorator wraps
        ("odd.later.Set.by_setattr", "present"),
        ("odd.later.Set.by_object", "present"),
        ("odd.later.Set.by_update", "present"),
        ("odd.later.Set.by_vars", "present"),
        ("odd.later.Set.by_nothing", "absent"),
    ],
)
def test_verdicts(index: VersionIndex, name: str, verdict: str) -> None:
    found = look_up(index, name)
    assert found.verdict == verdict, found
    assert found.verified or found.verdict != "absent"
    assert found.evidence.endswith((".", ")"))


def test_what_instances_may_make_is_absent_only_if_a_version_had_it(index: VersionIndex) -> None:
    for name in ("odd.later.Units.kilometer", "odd.later.units.kilometer"):
        found = look_up(index, name)
        assert (found.verdict, found.may_be_made) == ("absent", True)
        assert settled(found, Absence(evidence="", last_version="0.9")) is found
        assert settled(found, Absence(evidence="")).verdict == "unknown"
    assert not look_up(index, "odd.Circle.volume").may_be_made
    # Its code compares the name with texts, and makes none.
    assert not look_up(index, "odd.later.Former.fourth").may_be_made


def test_what_a_name_leads_to(index: VersionIndex) -> None:
    def row(name: str) -> str:
        place = look_up(index, name).row
        assert place is not None
        return index.row(place).doc

    assert row("odd.Request.json") == "Its body."
    assert row("odd.Circle").startswith("Any shape.") is False
    parent = look_up(index, "odd.Circle.__call__").parent
    assert parent is not None
    assert index.public(parent) == "odd.Circle"


def test_what_is_said_when_a_name_is_asked_for(index: VersionIndex) -> None:
    assert look_up(index, "odd.old").deprecated == "odd.old is deprecated, use odd.new"
    assert look_up(index, "odd.Made.OLDEST").deprecated == "Use odd.new instead of OLDEST"
    assert "tried with" in look_up(index, "odd.ancient").evidence
    assert "second is a parameter of odd.optional_user.f" in look_up(index, "odd.optional_user.f.second").evidence
    assert "nowhere_to_be_found" in look_up(index, "odd.needs").evidence


def test_what_is_said_of_names_that_are_gone(index: VersionIndex) -> None:
    mark = "\N{REPLACEMENT CHARACTER}"  # what is shown commands no terminal
    assert look_up(index, "odd.gone.ship").deprecated == f"ship was removed in 2.0, use {mark}[31mboat"
    # What is said of every name says nothing of this one, and is not kept for each word of the package.
    assert look_up(index, "odd.gruff.ship").deprecated == ""
    module = index.module("odd.gruff")
    assert module is not None
    assert index.namespace(module).refused == {}


def test_attributes_that_documentation_lists() -> None:
    numpy_style = "A class.\n\nAttributes\n----------\na, b : int\n    Text.\nc\n    More.\n\nNotes\n-----\nd : none\n"
    assert documented_names(numpy_style) == {"a", "b", "c"}
    assert documented_names("Attributes:\n    size: How large.\n") == {"size"}
    assert documented_names(":ivar int depth: deep\n:var name: its name\n.. attribute:: odd.Class.shade\n") == {
        "depth",
        "name",
        "shade",
    }
    assert documented_names("It attributes: nothing") == set()
