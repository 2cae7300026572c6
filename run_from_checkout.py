"""What an entry point of a checkout does first: find the package, or say in one message how to install it.

The entry points and this file keep to syntax that every Python reads, also one that is too old for the package: it
would otherwise end in a SyntaxError that says nothing.
"""

import os
import re
import shlex
import sys

__all__ = ["command", "prepare"]

ROOT = os.path.dirname(os.path.realpath(__file__))
_SHOWN = 3


def prepare(name):
    # type: (str) -> None
    """Put the package of this checkout on the path, before one that is installed and may be of another version.

    Where it cannot run, a program (`name` is "__main__") ends with a message and exit code 1, and a module raises
    ImportError with the same message.
    """
    problem = _problem()
    if problem:
        message = problem + "\n" + _remedy()
        if name == "__main__":
            sys.exit("error: " + message)
        raise ImportError(message)
    source = os.path.join(ROOT, "src")
    if source not in sys.path[:1]:
        sys.path.insert(0, source)


def command(*words):
    # type: (str) -> None
    """Run a command of `parallelmind` with the flags of this program, and end with its exit code."""
    from parallelmind.cli.main import program

    program(list(words) + sys.argv[1:])


def _problem():
    # type: () -> str
    """Why the package cannot run on this Python; empty if it can."""
    found = re.search(r'requires-python = ">=(\d+)\.(\d+)"', _pyproject())
    assert found
    least = (int(found.group(1)), int(found.group(2)))
    if sys.version_info[:2] < least:
        needed = "%d.%d or newer" % least
        return "ParallelMind needs Python %s; %s is %s." % (needed, sys.executable, sys.version.split()[0])
    from importlib import metadata

    try:
        metadata.version("parallelmind")
    except metadata.PackageNotFoundError:
        return _missing()
    return ""  # installed, and what it needs with it


def _missing():
    # type: () -> str
    import tomllib
    from importlib import metadata

    missing, present = [], []
    for requirement in tomllib.loads(_pyproject())["project"]["dependencies"]:
        package = re.split(r"[^\w.-]", requirement)[0]
        try:
            present.append((requirement, package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return "ParallelMind is not installed for %s: %s." % (sys.executable, _listed(missing, "missing"))
    from packaging.requirements import Requirement

    old = [
        "%s %s (needed: %s)" % (package, version, Requirement(requirement).specifier)
        for requirement, package, version in present
        if not Requirement(requirement).specifier.contains(version, prereleases=True)
    ]
    if old:
        return "ParallelMind does not run with the packages of %s: %s." % (sys.executable, _listed(old, "too old"))
    return ""


def _listed(names, what):
    # type: (list[str], str) -> str
    shown, more = ", ".join(names[:_SHOWN]), len(names) - _SHOWN
    verb = "is" if len(names) == 1 else "are"
    return "%s%s %s %s" % (shown, " and %d more packages" % more if more > 0 else "", verb, what)


def _remedy():
    # type: () -> str
    python = os.path.join(ROOT, ".venv", "bin", "python")
    shown = os.path.relpath(python) if os.getcwd() == ROOT else python
    quote = getattr(shlex, "quote", str)  # Python 2 has none
    run = "    " + " ".join([shown] + [quote(word) for word in sys.argv if os.path.isfile(sys.argv[0])])
    if _is_installed_in_venv():
        return "It is installed in .venv of this checkout; start your program with\n" + run
    return "\n".join(
        [
            "Install it, in %s, by one of" % ROOT,
            "    make demo                                   into .venv, and shows that it works",
            "    python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[serve,rag,show]'",
            "    pip install -r requirements.txt             into an environment of your own",
            "and then, if it is in .venv, start your program with",
            run,
        ]
    )


def _is_installed_in_venv():
    # type: () -> bool
    from glob import glob

    return bool(glob(os.path.join(ROOT, ".venv", "lib", "python*", "site-packages", "parallelmind-*.dist-info")))


def _pyproject():
    # type: () -> str
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return file.read().decode("utf-8")
