"""Small packages on disk, as folders, wheels and source archives."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path

SHAPES = {
    "shapes/__init__.py": '''
        """Shapes and their areas."""

        from shapes._impl import Circle, area
        from shapes._impl import area as surface
        from shapes.extra import *

        __version__ = "1.0"
        __all__ = ["Circle", "area", "double"]
        ''',
    "shapes/_impl.py": '''
        """Where things are."""

        import os


        class Shape:
            """A shape."""

            def scale(self, factor: float = 2.0) -> "Shape":
                """Make it larger."""

            def move(self):
                """Put it elsewhere."""


        class Circle(Shape):
            """A round shape."""

            def __init__(self, radius, *, unit="m"):
                self.radius = radius

            def move(self):
                pass

            @property
            def diameter(self):
                """Twice the radius."""
                return 2 * self.radius

            def _hidden(self):
                """Not public."""


        def area(shape, *, exact=False):
            """The area of a shape: 面积 ✓."""
            return 3 if not exact else 3.14
        ''',
    "shapes/extra.py": '''
        """More."""

        import os
        from shapes._impl import Shape

        __all__ = ["double"]

        LIMIT = 3


        def double(x):
            """Twice x."""
            return 2 * x


        def helper():
            """Not in __all__, but public here."""
        ''',
    "shapes/tests/__init__.py": "",
    "shapes/tests/test_area.py": '''
        def test_area():
            """Never in a corpus."""
        ''',
}


def write_package(folder: Path, files: Mapping[str, str]) -> Path:
    """The files below `folder`, unindented."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), "utf-8")
    return folder


def make_wheel(
    folder: Path,
    files: Mapping[str, str],
    *,
    name: str = "shapes",
    version: str = "1.0",
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    python: str = "",
) -> Path:
    """An installable wheel."""
    info = f"{name}-{version}.dist-info"
    requirements = "".join(f"Requires-Dist: {line}\n" for line in requires)
    requirements += f"Requires-Python: {python}\n" if python else ""
    contents = {path: textwrap.dedent(text).lstrip("\n") for path, text in files.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requirements}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in contents.items())
    contents[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, text in contents.items():
            archive.writestr(member, text)
    return path


def make_sdist(folder: Path, files: Mapping[str, str], *, name: str = "shapes", version: str = "1.0") -> Path:
    """A source archive, with a setup.py that must not run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    contents = {
        **files,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "setup.py": f"open({str(folder / 'setup_ran')!r}, 'w'); raise SystemExit('setup.py was run')\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for member, text in contents.items():
            content = textwrap.dedent(text).lstrip("\n").encode()
            entry = tarfile.TarInfo(f"{name}-{version}/{member}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
