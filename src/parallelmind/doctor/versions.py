"""Whether Python and the packages installed are of the versions that ParallelMind declares."""

from __future__ import annotations

import platform
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import parallelmind
from parallelmind.doctor.check import Check, CheckFailedError, DoctorOptions, NotApplicableError, checkout_project

_OTHER_IMPORT_NAMES = {"pil": "pillow", "google": "protobuf"}


def checks(options: DoctorOptions) -> list[Check]:
    del options

    def check(name: str, run: partial[str], remedy: str) -> Check:
        return Check(group="versions", name=name, run=run, remedy=remedy)

    own = "Install this version over the other one: pip install -e . in the checkout, or pip install -U parallelmind"
    python = "Make a new environment with such a Python, for example: python3.12 -m venv .venv"
    return [
        check("parallelmind", partial(_own_version), own),
        check("python", partial(_python_version), python),
        *(
            check(one.name, partial(_required, one), f"pip install '{one.name}{one.specifier}'")
            for one in _requirements("")
        ),
        *(
            check(f"[{extra}]", partial(_extra, extra), f"pip install -U 'parallelmind[{extra}]'")
            for extra in _extras()
        ),
    ]


def extra_of_module(module: str) -> str | None:
    """The extra that brings a module that is not installed; None if none does, or every installation needs it."""
    name = _normal(module.partition(".")[0])
    name = _OTHER_IMPORT_NAMES.get(name, name)
    return next((extra for extra in _extras() if name in {_normal(one.name) for one in _requirements(extra)}), None)


def _own_version() -> str:
    try:
        installed = version("parallelmind")
    except PackageNotFoundError:
        raise NotApplicableError(f"{parallelmind.__version__}, from a checkout that is not installed") from None
    if installed != parallelmind.__version__:
        raise CheckFailedError(f"{parallelmind.__version__} is imported, but {installed} is what pip installed")
    return installed


def _python_version() -> str:
    asked, found = SpecifierSet(_declared()[0]), platform.python_version()
    if not asked.contains(found, prereleases=True):
        raise CheckFailedError(f"{found}; {asked} is needed")
    return f"{found} ({asked})"


def _required(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        raise CheckFailedError(f"not installed; {requirement.specifier} is needed") from None
    # Pre-releases and local builds (2.9.0a0+git, 2.9.0+cu128) are what the user chose.
    if not requirement.specifier.contains(found, prereleases=True):
        raise CheckFailedError(f"{found}; {requirement.specifier} is needed")
    return f"{found} ({requirement.specifier})" if requirement.specifier else found


def _extra(extra: str) -> str:
    missing, found = [], []
    for requirement in _requirements(extra):
        try:
            version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
            continue
        try:
            found.append(f"{requirement.name} {_required(requirement)}")
        except CheckFailedError as wrong:
            raise CheckFailedError(f"{requirement.name} {wrong}") from wrong
    if missing:
        raise NotApplicableError(f"no {', '.join(missing)}; if wanted: pip install 'parallelmind[{extra}]'")
    return ", ".join(found)


@cache
def _declared() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Python's range, the requirements, and the extras: as installed, else as in the checkout's pyproject.toml."""
    try:
        meta = distribution("parallelmind").metadata
        requires, extras = meta.get_all("Requires-Dist") or (), meta.get_all("Provides-Extra") or ()
        return str(meta["Requires-Python"]), tuple(map(str, requires)), tuple(map(str, extras))
    except PackageNotFoundError:
        project = checkout_project()
    optional: dict[str, list[str]] = project["optional-dependencies"]
    conditional = [f'{one}; extra == "{extra}"' for extra, listed in optional.items() for one in listed]
    return project["requires-python"], (*project["dependencies"], *conditional), tuple(optional)


def _requirements(extra: str) -> list[Requirement]:
    """What an extra needs in this environment; without a name, what every installation needs."""
    found = []
    for text in _declared()[1]:
        requirement = Requirement(text)
        of_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if wanted and of_extra == bool(extra) and _normal(requirement.name) != "parallelmind":
            found.append(requirement)
    return found


def _extras() -> list[str]:
    return [extra for extra in _declared()[2] if extra != "dev"]  # what the tests need does not concern an installation


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
