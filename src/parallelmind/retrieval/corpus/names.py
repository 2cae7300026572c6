"""Distributions (scikit-learn) and the names they are imported by (sklearn)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.objects import is_test_module

# Import names, normalised, whose distribution is called something else. Only for requests by import name, before
# anything is fetched; the other direction is read from the wheel.
_DISTRIBUTIONS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "crypto": "pycryptodome",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "git": "gitpython",
    "github": "pygithub",
    "google-protobuf": "protobuf",
    "jose": "python-jose",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "mpl-toolkits": "matplotlib",
    "openssl": "pyopenssl",
    "osgeo": "gdal",
    "pil": "pillow",
    "pkg-resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skopt": "scikit-optimize",
    "slugify": "python-slugify",
    "telegram": "python-telegram-bot",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
_SUFFIXES = re.compile(r"(?:\.py|\.pyi|(?:\.[\w-]+)?\.(?:so|pyd))$")
_ARCHIVE_NAME = re.compile(r"[\w.+!-]+")
_OUTSIDE = frozenset({"docs", "doc", "examples", "example", "benchmarks", "scripts", "bin", "tools", "licenses"})


@dataclass(frozen=True, slots=True)
class PackageRequest:
    """What to build: a distribution by its normalised name, and a version if one was asked for."""

    distribution: str
    specifier: str
    """Such as `==1.26.4`; "" is the newest."""

    @property
    def version(self) -> Version | None:
        """The exact version, or None if the specifier leaves a choice."""
        if not self.specifier.startswith("==") or "*" in self.specifier or "," in self.specifier:
            return None
        return Version(self.specifier.lstrip("=").strip())

    def __str__(self) -> str:
        return f"{self.distribution}{self.specifier}"


def parse_request(text: str) -> PackageRequest:
    """Parse `numpy==1.26.4`, `sklearn==1.5.0`, `pandas`.

    Raises:
        SettingsError: it is not a name with a version.
    """
    try:
        requirement = Requirement(text)
        if requirement.url or requirement.marker or requirement.extras:
            raise InvalidRequirement("only a name and a version are expected; for a file there is --wheel")
        for specifier in requirement.specifier:
            if "*" not in specifier.version:
                Version(specifier.version)
    except (InvalidRequirement, InvalidVersion) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{text!r} is not a package ({reason}); expected something like numpy==1.26.4.") from None
    name = canonicalize_name(requirement.name)
    return PackageRequest(_DISTRIBUTIONS.get(name, name), str(requirement.specifier))


def parse_archive_name(name: str) -> tuple[str, Version]:
    """The distribution and the version in the name of a wheel or source archive.

    Raises:
        ValueError: it is not such a name.
    """
    if not _ARCHIVE_NAME.fullmatch(name):  # packaging lets a wheel's tags be anything, also a path
        raise ValueError("only letters, digits and . _ - + ! are expected in it")
    distribution, version, *_ = parse_wheel_filename(name) if name.endswith(".whl") else parse_sdist_filename(name)
    return distribution, version


def find_import_names(folder: Path) -> list[str]:
    """The packages and modules that an unpacked wheel installs, or that an unpacked source archive holds.

    Of namespace packages the packages in them: google.protobuf.
    """
    declared = [path.read_text("utf-8", "replace").split() for path in folder.glob("*.dist-info/top_level.txt")]
    top = {name for names in declared for name in names if name.isidentifier()} or set(_top_level(folder))
    found = {name for first in top if not _is_outside(first) for name in _regular(folder, first)}
    return sorted(found) or sorted(name for first in top for name in _regular(folder, first))


def source_root(folder: Path) -> Path:
    """The folder of the packages in an unpacked source archive: its only folder, or src or lib in it."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    root = inside[0] if len(inside) == 1 else folder
    for name in ("src", "lib", "Lib"):
        if (root / name).is_dir() and not (root / name / "__init__.py").exists() and list(_top_level(root / name)):
            return root / name
    return root


def compiled_modules(folder: Path, import_name: str) -> list[str]:
    """The modules of machine code of a package in an unpacked wheel."""
    base = folder / import_name.replace(".", "/")
    paths = [*base.parent.glob(f"{base.name}.*"), *base.rglob("*")]
    found = {path.relative_to(folder) for path in paths if path.suffix in (".so", ".pyd")}
    return sorted(".".join((*path.parent.parts, path.name.partition(".")[0])) for path in found)


def _is_outside(name: str) -> bool:
    return name.startswith("_") or is_test_module(name) or name in _OUTSIDE


def _top_level(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir() and path.name.isidentifier():
            if next(_regular(folder, path.name), None):
                yield path.name
        elif path.is_file() and (name := _SUFFIXES.sub("", path.name)) != path.name and name.isidentifier():
            yield name


def _regular(folder: Path, name: str) -> Iterator[str]:
    """`name` if it is a module or an ordinary package; the ones in it if it is a namespace package."""
    path = folder / name
    if not path.is_dir():
        if any(_SUFFIXES.sub("", found.name) == name for found in folder.glob(f"{name}.*")):
            yield name
    elif any((path / f"__init__{suffix}").exists() for suffix in (".py", ".pyi")):
        yield name
    else:
        for inner in sorted(found for found in _top_level(path) if not is_test_module(found)):
            for deeper in _regular(path, inner):
                yield f"{name}.{deeper}"
