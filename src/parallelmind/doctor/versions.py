"""Whether Python and the packages installed are of the versions that ParallelMind declares."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import parallelmind
from parallelmind.doctor.check import Check, CheckFailedError, NotApplicableError, Subject


@dataclass(frozen=True)
class Declared:
    """What the package says that it needs."""

    python: SpecifierSet
    requirements: Sequence[Requirement]
    """Those of the extras too, with a marker."""
    extras: Sequence[str]

    @classmethod
    def by(cls, subject: Subject) -> Declared:
        """As installed, else as in the checkout's pyproject.toml. Raises NotApplicableError if it is neither."""
        try:
            meta = distribution(subject.package.name).metadata
            python, extras = str(meta["Requires-Python"]), meta.get_all("Provides-Extra") or ()
            requires = meta.get_all("Requires-Dist") or ()
        except PackageNotFoundError:
            project = tomllib.loads((subject.checkout_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            python, extras = project["requires-python"], project["optional-dependencies"]
            conditional = [_in_extra(one, extra) for extra, listed in extras.items() for one in listed]
            requires = [*project["dependencies"], *conditional]
        # What the tests need does not concern an installation.
        named = [extra for extra in map(str, extras) if extra != "dev"]
        return cls(SpecifierSet(python), [Requirement(str(one)) for one in requires], named)

    def needed(self, extra: str = "") -> list[Requirement]:
        """What an extra needs in this environment; without a name, what every installation needs."""
        return [
            one
            for one in self.requirements
            if (one.marker is not None and "extra" in str(one.marker)) == bool(extra)
            and (one.marker is None or one.marker.evaluate({"extra": extra}))
            and canonicalize_name(one.name) != "parallelmind"  # an extra that takes in another one
        ]

    def extra_of_module(self, module: str) -> str | None:
        """The extra that brings a module that is not installed; None if none does, or every installation needs it."""
        top = module.partition(".")[0]
        name = canonicalize_name("pillow" if top == "PIL" else top)
        return next((one for one in self.extras if name in {canonicalize_name(r.name) for r in self.needed(one)}), None)


def checks(subject: Subject) -> list[Check]:
    declared = Declared.by(subject)
    own = "Install this version over the other one: pip install -e . in the checkout, or pip install -U parallelmind"
    python = "Make a new environment with such a Python, for example: python3.12 -m venv .venv"
    return [
        Check("parallelmind", partial(_own_version, subject.package.name), own),
        Check("python", partial(_python_version, declared.python), python),
        *(
            Check(one.name, partial(_required, one), f"pip install '{one.name}{one.specifier}'")
            for one in declared.needed()
        ),
        *(
            Check(
                f"[{extra}]", partial(_extra, extra, declared.needed(extra)), f"pip install -U 'parallelmind[{extra}]'"
            )
            for extra in declared.extras
        ),
    ]


def _own_version(name: str) -> str:
    installed = _installed(name)
    if installed is None:
        raise NotApplicableError(f"{parallelmind.__version__}, from a checkout that is not installed")
    if installed != parallelmind.__version__:
        raise CheckFailedError(f"{parallelmind.__version__} is imported, but {installed} is what pip installed")
    return installed


def _python_version(asked: SpecifierSet) -> str:
    found = platform.python_version()
    if not asked.contains(found, prereleases=True):
        raise CheckFailedError(f"{found}; {asked} is needed")
    return f"{found} ({asked})"


def _required(requirement: Requirement) -> str:
    found = _installed(requirement.name)
    if found is None:
        raise CheckFailedError(f"not installed; {requirement.specifier} is needed")
    # Pre-releases and local builds (2.9.0a0+git, 2.9.0+cu128) are what the user chose.
    if not requirement.specifier.contains(found, prereleases=True):
        raise CheckFailedError(f"{found}; {requirement.specifier} is needed")
    return f"{found} ({requirement.specifier})" if requirement.specifier else found


def _extra(extra: str, requirements: Sequence[Requirement]) -> str:
    missing = [one.name for one in requirements if _installed(one.name) is None]
    found = []
    for requirement in requirements:
        if requirement.name not in missing:
            try:
                found.append(f"{requirement.name} {_required(requirement)}")
            except CheckFailedError as wrong:
                raise CheckFailedError(f"{requirement.name} {wrong}") from wrong
    if missing:
        raise NotApplicableError(f"no {', '.join(missing)}; if wanted: pip install 'parallelmind[{extra}]'")
    return ", ".join(found)


def _installed(name: str) -> str | None:
    """The version of a package that is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _in_extra(requirement: str, extra: str) -> str:
    """A requirement of an extra as an installed package lists it."""
    name, _, marker = requirement.partition(";")
    return f'{name}; ({marker.strip()}) and extra == "{extra}"' if marker else f'{name}; extra == "{extra}"'
