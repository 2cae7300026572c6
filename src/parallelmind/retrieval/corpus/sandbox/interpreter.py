"""What of this machine an interpreter needs to run: its program, its library, and the system's."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parallelmind.errors import SettingsError

# Keeps to Python 3.7. The libraries that are loaded are found where this interpreter found them.
_QUESTION = """
import json, sys
libraries = set()
try:
    with open("/proc/self/maps") as file:
        libraries = {line.split(None, 5)[5].strip() for line in file if ".so" in line and line.count("/")}
except OSError:
    pass
print(json.dumps({
    "program": getattr(sys, "_base_executable", None) or sys.executable,
    "prefixes": [sys.base_prefix, sys.base_exec_prefix],
    "libraries": sorted(libraries),
}))
"""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
_SETTINGS = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/ca-trust", "/etc/ca-certificates"),
    *("/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf"),
    *("/etc/mime.types", "/etc/fonts", "/etc/magic"),
)
NETWORK_SETTINGS = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"),
    "/etc/protocols",
)
_INTO_EVERY_PROGRAM = ("LD_PRELOAD", "LD_AUDIT")
_PARTS = ("bin", "lib", "lib32", "lib64")
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python outside of any virtual environment."""

    program: str
    folders: tuple[str, ...]
    """What it consists of, but for what is below the system's own folders."""
    library_path: tuple[str, ...]
    """Folders of its shared libraries that the system's loader does not search by itself."""


@functools.cache
def find_interpreter(python: str) -> Interpreter:
    """Ask an interpreter, by its path, what it consists of.

    Raises:
        SettingsError: it does not run.
    """
    command = [python, "-I", "-S", "-c", _QUESTION]
    environment = {name: value for name, value in os.environ.items() if name not in _INTO_EVERY_PROGRAM}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd="/", env=environment
        )
        told = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SettingsError(
            f"the interpreter {python} does not run ({error}); name another one with --python."
        ) from None
    program = os.path.realpath(told["program"])
    parts = {os.path.realpath(Path(prefix, part)) for prefix in told["prefixes"] for part in _PARTS}
    libraries = {os.path.dirname(os.path.realpath(path)) for path in told["libraries"]}
    home = os.path.realpath(os.path.expanduser("~"))  # is not shown, not even for a library in it
    beside = tuple(
        sorted(path for path in libraries if not is_seen(path, [*_SYSTEM, *parts]) and not is_seen(home, [path]))
    )
    folders = {path for path in (*parts, *beside, program) if os.path.exists(path) and not is_seen(path, _SYSTEM)}
    return Interpreter(program, outermost(folders), beside)


def system_folders() -> tuple[dict[str, str], list[str]]:
    """The system's own folders: links (name to target) and folders."""
    links = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    return links, [path for path in _SYSTEM if os.path.isdir(path) and path not in links]


def system_settings(names: tuple[str, ...] = _SETTINGS) -> list[tuple[str, str]]:
    """Pairs of a file or folder that is there, and the name that programs know it by."""
    return [(os.path.realpath(name), name) for name in names if os.path.exists(name)]


def outermost(paths: set[str]) -> tuple[str, ...]:
    """Without those that are below another one."""
    return tuple(sorted(path for path in paths if not is_seen(path, paths - {path})))


def is_seen(path: str, folders: Iterable[str]) -> bool:
    """Whether a path is one of the folders, or below one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)
