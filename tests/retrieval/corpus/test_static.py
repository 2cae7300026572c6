"""What the files say: where things are defined, by what names they are reached, and what is not public."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.objects import is_public, split_signature
from parallelmind.retrieval.corpus.static import StaticPackage, analyse
from tests.retrieval.corpus.wheels import SHAPES, write_package

AREA_BODY = '''    """The area of a shape: 面积 ✓."""
    return 3 if not exact else 3.14'''


@pytest.fixture
def shapes(tmp_path: Path) -> StaticPackage:
    return analyse(write_package(tmp_path, SHAPES), "shapes")


def test_re_exports_are_names_of_one_object(shapes: StaticPackage) -> None:
    area = shapes.objects["shapes._impl.area"]
    assert area.names == {"shapes.area", "shapes.surface"}
    assert (area.type, area.signature) == ("function", "(shape, *, exact=False)")
    assert area.doc == "The area of a shape: 面积 ✓."
    assert area.code == "def area(shape, *, exact=False):\n" + AREA_BODY
    assert shapes.resolve("shapes.surface") == "shapes._impl.area"
    assert shapes.objects["shapes.extra.double"].names == {"shapes.double", "shapes.extra.double"}


def test_members_have_the_names_of_all_classes_that_inherit_them(shapes: StaticPackage) -> None:
    scale = shapes.objects["shapes._impl.Shape.scale"]
    assert scale.names == {"shapes.Circle.scale"}
    assert (scale.type, scale.signature) == ("method", "(factor: float = 2.0) -> Shape")
    circle = shapes.objects["shapes._impl.Circle"]
    assert circle.members == {"scale", "move", "diameter", "radius"}
    assert circle.signature == "(radius, *, unit='m')"
    assert shapes.objects["shapes._impl.Circle.diameter"].type == "property"
    # No documentation of its own: that of the method it overrides.
    assert shapes.objects["shapes._impl.Circle.move"].doc == "Put it elsewhere."


def test_what_is_public(shapes: StaticPackage) -> None:
    names = {name for item in shapes.objects.values() for name in item.names}
    assert {"shapes", "shapes.extra", "shapes.extra.helper", "shapes.extra.LIMIT"} <= names
    assert not {name for name in names if "_" in name or "test" in name or ".os" in name}
    # Imported for the module's own use: not a name of Shape.
    assert "shapes.extra.Shape" not in names


def test_compiled_modules(tmp_path: Path) -> None:
    files = {
        "num/__init__.py": "from num import core\nfrom num.core import *\nfrom num._fast import hidden_in_c as shown\n",
        "num/core.py": 'from num._fast import *\n__all__ = ["array", "pi_"]\n',
        "num/rand.pyi": (
            "from typing import overload\nfrom num.core import array\n@overload\ndef draw(n: int) -> int: ...\n"
            "@overload\ndef draw(n: None) -> float: ...\n"
        ),
        "num/old.py": "from builtins import bool\n",
        "num/compat/__init__.py": "from builtins import bool\n",
    }
    found = analyse(write_package(tmp_path, files), "num").objects
    assert found["num.core.array"].names == {"num.array", "num.core.array"}
    assert found["num._fast.hidden_in_c"].names == {"num.shown"}
    assert (found["num.rand.draw"].type, found["num.rand.draw"].signature) == ("function", "(n: int) -> int")
    assert found["num.compat.bool"].doc == "Re-export of builtins.bool."
    assert not {"num.rand.array", "num.old.bool"} & found.keys()


def test_files_nobody_can_read_do_not_matter(tmp_path: Path) -> None:
    files = {
        "odd/__init__.py": 'def good():\n    """Here."""\n',
        "odd/python2.py": "print 'x'\n",
        "odd/latin.py": "x = 1\n",
        "odd/circle_a.py": "from odd.circle_b import *\nfrom odd.circle_b import x\n",
        "odd/circle_b.py": "from odd.circle_a import *\nfrom odd.circle_a import x\n",
        "odd/self.py": "from odd.self import x\n",
    }
    write_package(tmp_path, files)
    (tmp_path / "odd/latin.py").write_bytes(b"x = '\xff\xfe'\n\x00")
    found = analyse(tmp_path, "odd").objects
    assert found["odd.good"].doc == "Here."
    assert "odd.python2.x" not in found


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: its files cannot be read"):
        analyse(tmp_path, "missing")


def test_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    files = {"evil/__init__.py": f"open({str(marker)!r}, 'w')\nraise SystemExit\n", "evil/x.py": "def f(): ...\n"}
    assert "evil.x.f" in analyse(write_package(tmp_path, files), "evil").objects
    assert not marker.exists()


@pytest.mark.parametrize(
    ("doc", "signature"),
    [
        ("add(x1, x2, /, out=None)\n\nAdd.", "(x1, x2, /, out=None)"),
        ("array(object, *,\n      like=None)\n\nCreate.", "(object, *, like=None)"),
        ("f((a, b)=(1, 2)) -> int\n\nX.", "((a, b)=(1, 2)) -> int"),
        ("call(x) is a sentence.", ""),
        ("open(never closed", ""),
        ("No call here.", ""),
        ("", ""),
    ],
)
def test_signatures_in_docstrings(doc: str, signature: str) -> None:
    assert split_signature(doc) == signature


@pytest.mark.parametrize("name", ["a.b", "numpy.core.multiarray", "a.test_data"])
def test_public(name: str) -> None:
    assert is_public(name)


@pytest.mark.parametrize("name", ["a._b", "a.tests.b", "_a", "a.conftest", "a.__init__"])
def test_private(name: str) -> None:
    assert not is_public(name)


def test_files_nested_beyond_reading_are_left_out_and_named(tmp_path: Path) -> None:
    files = {
        "deep/__init__.py": 'def f():\n    """Here."""\n',
        "deep/minus.py": "x = " + "-" * 200_000 + "1\n",
        "deep/plus.py": "x = " + "+".join(["'a'"] * 30_000) + "\n",
        "deep/usual.py": "x = " + "+".join(["'a'"] * 100) + "\n",
    }
    found = analyse(write_package(tmp_path, files), "deep")
    assert found.unread == ["deep/minus.py", "deep/plus.py"]
    assert found.objects["deep.f"].doc == "Here."
    assert "deep.usual.x" in found.objects


def test_what_an_aliased_module_holds_is_reached_through_it(tmp_path: Path) -> None:
    files = {
        "num/__init__.py": "from num import core\nfrom num.core import defchar as char\n",
        "num/core/__init__.py": "import num as np\n",
        "num/core/defchar.py": "def add(a, b): ...\nclass chars:\n    def join(self): ...\n",
    }
    found = analyse(write_package(tmp_path, files), "num").objects
    assert found["num.core.defchar.add"].names == {"num.core.defchar.add", "num.char.add"}
    assert found["num.core.defchar.chars.join"].names == {"num.core.defchar.chars.join", "num.char.chars.join"}
    assert not [name for item in found.values() for name in item.names if ".np" in name]
