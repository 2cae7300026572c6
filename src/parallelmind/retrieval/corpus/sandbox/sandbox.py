"""Where code that is not trusted runs: bubblewrap, namespaces of our own, or, if that is asked for, nowhere special."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.sandbox.interpreter import (
    NETWORK_SETTINGS,
    find_interpreter,
    is_seen,
    outermost,
    system_folders,
    system_settings,
)
from parallelmind.retrieval.corpus.sandbox.running import CommandResult, Limits, run_limited
from parallelmind.retrieval.corpus.sandbox.syscalls import build_filter

Kind = Literal["bubblewrap", "namespaces", ""]

_LAUNCHER = Path(__file__).with_name("launcher.py")
_SCRATCH = "/scratch"
_SETUP_FAILED, _MOST_SHOWN = ("no sandbox: ", "bwrap: "), 300
# Without /dev/zero: shared mappings of it are memory that no process is charged for.
_DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
_TEXTS = {
    "/etc/passwd": f"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:{_SCRATCH}:/bin/false\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A way to run a command apart; `kind` "" is none."""

    kind: Kind

    def run(
        self,
        python: str,
        arguments: Sequence[str],
        output: Path,
        limits: Limits,
        *,
        readable: Sequence[Path] = (),
        writable: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        network: bool = False,
        own_files: bool = False,
    ) -> CommandResult:
        """Run an interpreter with these arguments; its standard output goes to the file `output`.

        It sees the interpreter, `readable` and `writable` by the paths they have, and can write to the latter and to
        a folder that is gone afterwards. With `own_files` it writes as the user who runs us, also if that is root.
        Without a sandbox, that folder is a new one beside `output`.

        Raises:
            SettingsError: the sandbox cannot be made, or the interpreter does not run.
        """
        interpreter, own = find_interpreter(python), find_interpreter(sys.executable)
        libraries = [*interpreter.library_path, *own.library_path]
        home = _SCRATCH if self.kind else str(output.with_suffix(".home"))
        given = {
            **dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"), home),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "MPLBACKEND": "Agg",
            **({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {}),
            **(environment or {}),
        }
        plan: dict[str, Any] = {"kind": self.kind, "command": [interpreter.program, *arguments]}
        if self.kind:
            folders = [*interpreter.folders, str(_LAUNCHER), *map(str, readable)]
            plan |= self.plan(folders, [str(path) for path in writable], limits, network, own_files)
        else:
            plan["limits"] = limits.of_process()
            shutil.rmtree(home, ignore_errors=True)
            os.mkdir(home)
        command = [own.program, "-I", "-S", "-B", str(_LAUNCHER), json.dumps(plan)]
        folder = "/" if self.kind else home
        result = run_limited(command, given, limits, output, folder=folder, watched=writable)
        if self.kind and result.returncode not in (0, None) and result.stderr.startswith(_SETUP_FAILED):
            raise SettingsError(
                f"the sandbox cannot be made ({result.stderr.strip()[:_MOST_SHOWN]}); give --no_runtime, or"
                " --unsafe_inspection to do without one."
            )
        return result

    def plan(
        self, readable: Sequence[str], writable: Sequence[str], limits: Limits, network: bool, own_files: bool
    ) -> dict[str, Any]:
        """What the launcher is to make of it."""
        return {
            **_view(readable, writable, network),
            "bwrap": shutil.which("bwrap"),
            "limits": limits.of_process(),
            "scratch_bytes": limits.scratch_bytes,
            "inner_limits": limits.in_namespace(),
            "keep_user": own_files,
            "network": network,
            "seccomp": build_filter().hex(),
        }


NO_SANDBOX = Sandbox("")


def _view(readable: Sequence[str], writable: Sequence[str], network: bool) -> dict[str, Any]:
    """What can be seen in there, by the names in the launcher's plan."""
    links, folders = system_folders()
    pairs = [(path, path) for path in folders] + system_settings()
    pairs += system_settings(NETWORK_SETTINGS) if network else []
    seen = [target for _, target in pairs]
    named = outermost({path for path in readable if not is_seen(path, seen)})
    pairs += [(os.path.realpath(path), path) for path in named]
    for name in ("/tmp", "/var/tmp", "/dev/shm"):  # unless something that is needed lies in there
        if not any(is_seen(path, [name]) for path in (*named, *writable)):
            links[name] = _SCRATCH
    return {
        "links": links,
        "readable": pairs,
        "writable": [(os.path.realpath(path), path) for path in writable],
        "devices": [(path, path) for path in _DEVICES if os.path.exists(path)],
        "texts": _TEXTS,
        "scratch": _SCRATCH,
    }
