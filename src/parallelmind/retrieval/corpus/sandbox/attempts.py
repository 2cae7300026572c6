"""Tries, in a sandbox, to do what must not be possible there; prints what was, as a JSON list.

    python -I -S attempts.py OUTSIDE     a JSON object; `probe.find_faults` writes it

Nothing of parallelmind is imported.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import socket
import sys
import time
from typing import Any, Callable  # noqa: UP035

_CLONE_NEWUSER = 0x10000000
_DAEMON_SECONDS = 60
_CHUNK = 2**20


def main() -> None:
    outside = json.loads(sys.argv[1])
    attempts: dict[str, Callable[[dict[str, Any]], bool]] = {
        "a port of this machine was reached": reach_port,
        "a socket of this machine, one without a path, was reached": reach_abstract_socket,
        "a socket of this machine was reached by its path": reach_socket,
        "a file of yours was read": read_file,
        "a file was written outside": write_files,
        "settings of the kernel were open for writing": open_settings,
        "processes of this machine were seen": see_processes,
        "the first process was open to others": open_first_process,
        "the namespaces are those of this machine": share_namespaces,
        "there was no end to the folder that may be written": fill_scratch,
        "further namespaces were made": make_namespace,
        "there were rights left": have_rights,
        "descriptors were passed on": have_descriptors,
        "a limit is not set": lack_limits,
    }
    print(json.dumps([words for words, attempt in attempts.items() if attempt(outside)]), flush=True)
    leave_daemon()


def reach_port(outside: dict[str, Any]) -> bool:
    return connects(socket.AF_INET, ("127.0.0.1", outside["port"]))


def reach_abstract_socket(outside: dict[str, Any]) -> bool:
    return connects(socket.AF_UNIX, "\0" + outside["name"])


def reach_socket(outside: dict[str, Any]) -> bool:
    return connects(socket.AF_UNIX, outside["socket"])


def connects(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(2)
        try:
            attempt.connect(address)
        except OSError:
            return False
        return True


def read_file(outside: dict[str, Any]) -> bool:
    try:
        with open(outside["secret"], "rb") as file:
            return bool(file.read())
    except OSError:
        return False


def write_files(outside: dict[str, Any]) -> bool:
    folders = ["/", "/etc", "/usr", "/dev", outside["folder"], os.path.dirname(sys.executable)]
    return any(writes(os.path.join(folder, outside["name"])) for folder in folders)


def writes(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)
    except OSError:
        return False
    return True


def open_settings(outside: dict[str, Any]) -> bool:
    """Whether a file of /proc that changes the machine can be opened for writing; nothing is written."""
    paths = [path for path in glob.glob("/proc/*") if os.path.isfile(path)]
    for folder in ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"):
        paths += [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            continue
        return True
    return False


def see_processes(outside: dict[str, Any]) -> bool:
    try:
        return len([name for name in os.listdir("/proc") if name.isdigit()]) > int(outside["processes"])
    except OSError:
        return False


def open_first_process(outside: dict[str, Any]) -> bool:
    try:
        with open("/proc/1/mem", "r+b"):
            return True
    except OSError:
        return False


def share_namespaces(outside: dict[str, Any]) -> bool:
    for name, link in outside["namespaces"].items():
        try:
            if os.readlink("/proc/self/ns/" + name) == link:
                return True
        except OSError:
            continue
    return False


def fill_scratch(outside: dict[str, Any]) -> bool:
    chunk, path = bytes(_CHUNK), os.path.join(os.environ["TMPDIR"], "filled")
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(2 * outside["scratch_bytes"] // _CHUNK):
                file.write(chunk)
    except OSError:
        return False
    finally:
        os.unlink(path)
    return True


def make_namespace(outside: dict[str, Any]) -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


def have_rights(outside: dict[str, Any]) -> bool:
    try:
        with open("/proc/self/status") as file:
            status = dict(line.split(":", 1) for line in file)
    except OSError:
        return False
    rights = [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb", "CapBnd")]
    return any(rights) or status["NoNewPrivs"].strip() != "1"


def have_descriptors(outside: dict[str, Any]) -> bool:
    for number in range(3, 256):
        try:
            os.fstat(number)
        except OSError:
            continue
        return True
    return False


def lack_limits(outside: dict[str, Any]) -> bool:
    import resource

    return any(resource.getrlimit(getattr(resource, name))[1] > value for name, value in outside["limits"].items())


def leave_daemon() -> None:
    """A process that outlives this one, if it may; it keeps the standard error open."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(_DAEMON_SECONDS)
        os._exit(0)


if __name__ == "__main__":
    main()
