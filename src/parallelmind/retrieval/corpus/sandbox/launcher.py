"""The first program in a sandbox: sets limits, closes the doors, and starts the command that is not trusted.

    python -I -S launcher.py PLAN     a JSON object; `sandbox.Sandbox` writes it

Nothing of parallelmind is imported, and what runs inside of bwrap keeps to Python 3.7. With "kind" "bubblewrap" the
doors are bwrap's, with "namespaces" they are closed here by the same system calls, with "" there are limits only. What
the command sees is the same in both: a root of its own with the named folders of the host, read-only, and one folder
of limited size to write to.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from typing import Any, NoReturn

NOBODY = 65534
SETUP_FAILED = 126

# Mounts, cgroups, host name, System V memory, users, process ids.
_CLONE_NEW = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAPABILITY_VERSION_3 = 0x20080522
# Of the files in /proc these change the machine, if a process of root may write to them.
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs", "mtrr")
_TMPFS_FILES = 200_000


def main() -> NoReturn:
    plan = json.loads(sys.argv[1])
    if plan["kind"] != "inside bubblewrap":
        end_with_parent()
    limit(plan["limits"])
    if plan["kind"] == "namespaces":
        os.umask(0o022)
        enter(plan)
    command = bubblewrap(plan) if plan["kind"] == "bubblewrap" else plan["command"]
    if plan["kind"] == "inside bubblewrap":
        run_and_bury(command)
    try:
        os.execv(command[0], command)
    except OSError as error:
        fail(f"{command[0]} cannot be started: {error.strerror}")


def limit(values: dict[str, int]) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, value in values.items():
        number = getattr(resource, name, None)
        if number is not None:
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (value, value))


def fail(words: str) -> NoReturn:
    sys.stderr.write(f"no sandbox: {words}\n")
    sys.stderr.flush()
    os._exit(SETUP_FAILED)


def bubblewrap(plan: dict[str, Any]) -> list[str]:
    """The command line of bwrap that keeps the plan."""
    words = [plan["bwrap"], "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    words += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += [] if plan["network"] else ["--unshare-net"]
    words += ["--proc", "/proc"]
    for source, target in plan["devices"]:
        words += ["--dev-bind", source, target]
    for name, content in plan["texts"].items():
        words += ["--ro-bind-data", str(readable_end(content.encode())), name]
    words += ["--size", str(plan["scratch_bytes"]), "--perms", "1777", "--tmpfs", plan["scratch"]]
    for target, source in plan["links"].items():
        words += ["--symlink", source, target]
    # bwrap itself leaves them as they are where it finds their folders read-only, as it does for root.
    readable = [*plan["readable"], *((f"/proc/{name}", f"/proc/{name}") for name in _PROC_READ_ONLY)]
    for source, target in readable:
        if os.path.exists(source):
            words += ["--ro-bind", source, target]
    for source, target in plan["writable"]:
        words += ["--bind", source, target]
    words += ["--remount-ro", "/", "--chdir", plan["scratch"]]
    if plan["seccomp"]:
        words += ["--seccomp", str(readable_end(bytes.fromhex(plan["seccomp"])))]
    # bwrap's own first process would be outside of the filter, and open to the command.
    inside = {"kind": "inside bubblewrap", "limits": plan["inner_limits"], "command": plan["command"]}
    return [*words, "--as-pid-1", "--", plan["command"][0], "-I", "-S", "-B", __file__, json.dumps(inside)]


def readable_end(content: bytes) -> int:
    """A descriptor from which bwrap reads `content`, which a pipe can hold."""
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    os.set_inheritable(reader, True)
    return reader


def enter(plan: dict[str, Any]) -> NoReturn:
    """Make namespaces, run the command in them, and end as it does."""
    try:
        own_user_namespace(_CLONE_NEW | (0 if plan["network"] else _CLONE_NEWNET))
        make_root(plan)
        alive, alive_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(alive_end)
            first_process(plan, alive)
        os.close(alive)
        os._exit(status_of(os.waitpid(child, 0)[1]))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror))


def own_user_namespace(flags: int) -> None:
    """Leave for new namespaces; a child that stays behind says who we are in there, as only it may."""
    uid, gid, pid = os.getuid(), os.getgid(), os.getpid()
    (wait_left, left), (wait_mapped, mapped) = os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(left)
        os.read(wait_left, 1)
        if not (uid == 0 and map_root(pid)):
            try:
                write(f"/proc/{pid}/setgroups", "deny")
                write(f"/proc/{pid}/uid_map", f"{NOBODY} {uid} 1")
                write(f"/proc/{pid}/gid_map", f"{NOBODY} {gid} 1")
            except OSError:
                os._exit(1)
        os.write(mapped, b"x")
        os._exit(0)
    os.close(mapped)
    call("unshare", flags)
    os.close(left)
    done = os.read(wait_mapped, 1)
    os.waitpid(helper, 0)
    if not done:
        fail("the system permits a user namespace, but no user in it")
    for descriptor in (wait_left, wait_mapped):
        os.close(descriptor)


def map_root(pid: int) -> bool:
    """Root and nobody: one becomes the other later, so that limits on processes hold and no file of root is its own."""
    try:
        for name in ("gid_map", "uid_map"):
            write(f"/proc/{pid}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
    except OSError:  # root of a namespace that has no nobody
        return False
    return True


def make_root(plan: dict[str, Any]) -> None:
    """A root with nothing but what the plan names; the old one is at /old until the first process lets go of it."""
    mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    base = "/tmp"
    mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=16m,mode=755")
    os.mkdir(f"{base}/old")
    os.mkdir(f"{base}/new")
    call("pivot_root", base.encode(), f"{base}/old".encode())
    os.chdir("/")
    mount("tmpfs", "/new", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=16m,mode=755")
    for source, target in plan["devices"]:
        bind(source, target)
    for name, content in plan["texts"].items():
        os.makedirs(os.path.dirname(f"/new{name}"), exist_ok=True)
        write(f"/new{name}", content, os.O_CREAT)
    os.mkdir("/new/proc")
    os.makedirs(f"/new{plan['scratch']}", exist_ok=True)
    options = f"size={plan['scratch_bytes']},nr_inodes={_TMPFS_FILES},mode=1777"
    mount("tmpfs", f"/new{plan['scratch']}", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for target, source in plan["links"].items():
        os.makedirs(os.path.dirname(f"/new{target}"), exist_ok=True)
        os.symlink(source, f"/new{target}")
    for source, target in plan["readable"]:
        bind(source, target, _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)
    for source, target in plan["writable"]:
        bind(source, target, _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)


def bind(source: str, target: str, attributes: int = 0) -> None:
    inside = f"/new{target}"
    if os.path.isdir(f"/old{source}"):
        os.makedirs(inside, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
    mount(f"/old{source}", inside, None, _MS_BIND | _MS_REC)
    set_attributes(inside, attributes)


def first_process(plan: dict[str, Any], alive: int) -> NoReturn:
    """Process 1 of the new namespaces: lets go of the host, gives up every right, runs the command and waits."""
    try:
        mount_proc(bool(plan["seccomp"]))
        os.chdir("/new")
        set_attributes("/new", _MOUNT_ATTR_RDONLY, recursive=False)
        call("pivot_root", b".", b".")
        call("umount2", b".", _MNT_DETACH)
        os.chdir(plan["scratch"])
        give_up_rights(plan)
        end_with_parent()
        if alive_parent_is_gone(alive):
            os._exit(SETUP_FAILED)
        os.close(alive)
        run_and_bury(plan["command"])
    except OSError as error:
        fail(f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror))


def run_and_bury(command: list[str]) -> NoReturn:
    """As process 1: start the command, wait for it and for what it leaves behind, and end as it does."""
    prctl(_PR_SET_DUMPABLE, 0)  # nobody looks into this process
    child = os.fork()
    if child == 0:
        os.setsid()
        os.execv(command[0], command)
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(status_of(status))


def mount_proc(can_filter: bool) -> None:
    try:
        mount("proc", "/new/proc", "proc", _MS_NOSUID | _MS_NODEV)
    except PermissionError:  # in a container, whose own /proc has parts that are hidden: then there is none
        if not can_filter:
            raise
        return
    write("/new/proc/sys/user/max_user_namespaces", "0")
    for name in _PROC_READ_ONLY:
        path = f"/new/proc/{name}"
        if os.path.exists(path):
            mount(path, path, None, _MS_BIND | _MS_REC)
            set_attributes(path, _MOUNT_ATTR_RDONLY)


def give_up_rights(plan: dict[str, Any]) -> None:
    limit(plan["inner_limits"])
    for capability in range(64):
        if prctl(_PR_CAPBSET_DROP, capability) != 0:
            break
    if os.getuid() == 0 and not plan["keep_user"]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call("capset", header, bytes(24))
    if prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        fail("new rights cannot be given up")
    if plan["seccomp"]:
        code = bytes.fromhex(plan["seccomp"])
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
        if prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program) != 0:
            fail("system calls cannot be filtered")


def end_with_parent() -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def alive_parent_is_gone(alive: int) -> bool:
    """Whether the parent ended before we asked to end with it; its end of the pipe is then closed."""
    os.set_blocking(alive, False)
    try:
        return os.read(alive, 1) == b""
    except BlockingIOError:
        return False


def status_of(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def write(path: str, text: str, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    given = [os.fsencode(text) if text is not None else None for text in (source, target, kind)]
    call("mount", *given, ctypes.c_ulong(flags), options.encode(), name=target)


def set_attributes(path: str, attributes: int, recursive: bool = True) -> None:
    """Change a mount and all below it at once."""
    if attributes:
        wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
        flags = ctypes.c_uint(_AT_RECURSIVE if recursive else 0)
        size = ctypes.c_size_t(len(wanted))
        call("syscall", ctypes.c_long(_SYS_MOUNT_SETATTR), _AT_FDCWD, os.fsencode(path), flags, wanted, size, name=path)


def call(function: str, *arguments: Any, name: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name or function)


def prctl(option: int, *arguments: Any) -> int:
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    given += [ctypes.c_ulong(0)] * (4 - len(given))
    try:
        return int(ctypes.CDLL(None, use_errno=True).prctl(option, *given))
    except (AttributeError, OSError, TypeError):  # not Linux
        return -1


if __name__ == "__main__":
    main()
