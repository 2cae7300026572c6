"""Which sandbox there is on this machine: one that has been tried, and kept what it promises."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.sandbox.running import Limits
from parallelmind.retrieval.corpus.sandbox.sandbox import Kind, Sandbox

_ATTEMPTS = Path(__file__).with_name("attempts.py")
_LIMITS = Limits(seconds=60, memory_bytes=2**30, scratch_bytes=8 * 2**20, output_bytes=2**16)
# In namespaces of our own the number of files is limited as well, and root is nobody; bwrap may be permitted to make
# namespaces where we are not.
_ORDER: tuple[Kind, ...] = ("namespaces", "bubblewrap")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_PROCESSES = 8
_LONGEST_FOLDER, _MOST_SHOWN = 70, 300


@functools.cache
def find_sandbox() -> Sandbox:
    """The first kind that keeps what it promises, tried once per process.

    Raises:
        SettingsError: there is none; says what was wrong with each, and what can be done.
    """
    faults = []
    for kind in _ORDER:
        fault = find_fault(Sandbox(kind))
        if not fault and kind == "bubblewrap" and os.geteuid() == 0:
            fault = "it does not limit how many processes root starts, so another user must start this"
        if not fault:
            return Sandbox(kind)
        faults.append(f"{kind}: {fault}")
    raise SettingsError(
        f"there is no sandbox to run the packages in ({'; '.join(faults)}). On Linux, install bubblewrap 0.8 or newer,"
        " or permit user namespaces; or give --no_runtime to describe packages by their files alone, or"
        " --unsafe_inspection to run their code with all that you may do yourself."
    )


def find_fault(sandbox: Sandbox) -> str:
    """What a sandbox does not keep of its promises, found by trying; "" if it keeps them."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if sandbox.kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not on PATH"
    try:
        return _try(sandbox)
    except OSError as error:
        return f"it cannot be tried ({error})"


def _try(sandbox: Sandbox) -> str:
    """Open what it must not reach, run `attempts`, and read what could be done."""
    with tempfile.TemporaryDirectory(dir=_short_folder()) as folder, contextlib.ExitStack() as stack:
        families = (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        port, abstract, path = (stack.enter_context(socket.socket(family)) for family in families)
        name, secret = f"parallelmind-{secrets.token_hex(8)}", Path(folder, "secret")
        port.bind(("127.0.0.1", 0))
        abstract.bind(f"\0{name}")
        path.bind(f"{folder}/socket")
        for listener in (port, abstract, path):
            listener.listen()
        secret.write_text("secret")
        # What keeps it apart must be the sandbox, and not that it runs as another user.
        for place in (folder, secret, f"{folder}/socket"):
            os.chmod(place, 0o777)
        outside = {
            "port": port.getsockname()[1],
            "name": name,
            "socket": f"{folder}/socket",
            "secret": str(secret),
            "folder": folder,
            "processes": _PROCESSES,
            "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES},
            "scratch_bytes": _LIMITS.scratch_bytes,
            "limits": _LIMITS.of_process(),
        }
        arguments = ["-I", "-S", "-B", str(_ATTEMPTS), json.dumps(outside)]
        output = Path(folder, "found")
        try:
            result = sandbox.run(sys.executable, arguments, output, _LIMITS, readable=[_ATTEMPTS])
        except SettingsError as error:
            return str(error).partition(";")[0]
        if result.failure:
            return f"its trial {result.failure}"[:_MOST_SHOWN]
        try:
            found = json.loads(output.read_bytes())
        except ValueError:
            return "its trial gave no answer"
        if result.survived:
            found.append("a process outlived it")
        return "; ".join(found)


def _short_folder() -> str:
    """Where a socket can be: its path may have 108 bytes at most."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) < _LONGEST_FOLDER else "/tmp"
