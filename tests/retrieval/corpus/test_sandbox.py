"""Code that tries to get out of its sandbox, or to take more than it may: each promise of SECURITY.md is tried here."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallelmind.retrieval.corpus.runtime import RuntimeReport, inspect_package
from parallelmind.retrieval.corpus.sandbox.running import CommandResult, Limits
from parallelmind.retrieval.corpus.sandbox.sandbox import NO_SANDBOX, Sandbox
from parallelmind.retrieval.corpus.sandbox.syscalls import build_filter
from tests.retrieval.corpus.sandboxes import KINDS, sandbox_or_skip

MIB = 2**20


@pytest.fixture(params=KINDS)
def apart(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_or_skip(request.param)


def run(apart: Sandbox, tmp_path: Path, code: str, *arguments: str, **limits: float) -> tuple[CommandResult, str]:
    """Run a program; how it ended, and what it printed."""
    program, output = tmp_path / "program.py", tmp_path / "printed"
    program.write_text(textwrap.dedent(code))
    given = Limits(**{"seconds": 60.0, **limits})  # type: ignore[arg-type]
    result = apart.run(sys.executable, ["-I", "-S", str(program), *arguments], output, given, readable=[program])
    return result, output.read_text("utf-8", "replace")


def answers(apart: Sandbox, tmp_path: Path, code: str, *arguments: str, **limits: float) -> list[Any]:
    """What a program printed, as JSON lines; it must end well."""
    result, printed = run(apart, tmp_path, code, *arguments, **limits)
    assert (result.failure, result.survived) == ("", False), result.stderr
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Sockets of this machine: by port, by path, and by a name alone."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        named, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        name, path = f"tests-{secrets.token_hex(8)}", f"/tmp/{secrets.token_hex(8)}.socket"
        abstract.bind(f"\0{name}")
        named.bind(path)
        stack.callback(os.unlink, path)
        for one in (named, abstract):
            one.listen()
        for one in (port, named, abstract):
            one.setblocking(False)
        yield {"port": port.getsockname()[1], "path": path, "abstract": name, "sockets": [port, named, abstract]}
        for one in (port, named, abstract):
            with pytest.raises(BlockingIOError):
                one.accept()


CONNECTS = """
    import json, socket, sys
    port, path, abstract = sys.argv[1:]
    where = [(socket.AF_INET, ("127.0.0.1", int(port))), (socket.AF_UNIX, path), (socket.AF_UNIX, "\\0" + abstract)]
    for family, address in where:
        with socket.socket(family) as attempt:
            attempt.settimeout(5)
            try:
                attempt.connect(address)
                print(json.dumps("reached"))
            except OSError as error:
                print(json.dumps("failed"))
    """


def test_no_socket_of_this_machine_is_reached(apart: Sandbox, tmp_path: Path, listening: dict[str, Any]) -> None:
    arguments = [str(listening["port"]), listening["path"], listening["abstract"]]
    assert answers(apart, tmp_path, CONNECTS, *arguments) == ["failed"] * 3


def test_the_same_code_reaches_them_outside(tmp_path: Path, listening: dict[str, Any]) -> None:
    """The test above would find a way, if there was one."""
    arguments = [str(listening["port"]), listening["path"], listening["abstract"]]
    assert answers(NO_SANDBOX, tmp_path, CONNECTS, *arguments) == ["reached"] * 3
    for one in listening["sockets"]:
        one.accept()[0].close()


def test_neither_environment_nor_processes_of_this_machine(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import glob, json, os
        found = False
        for path in glob.glob("/proc/[0-9]*/environ"):
            try:
                found = found or b"s3cret" in open(path, "rb").read()
            except OSError:
                pass
        print(json.dumps(found))
        print(json.dumps(len(glob.glob("/proc/[0-9]*")) < 6))
        print(json.dumps(sorted(os.environ)))
        print(json.dumps(sorted(int(name) for name in os.listdir("/proc/self/fd"))[:3]))
        print(json.dumps(len(os.listdir("/proc/self/fd")) - 1))  # but for the one that lists them
        """
    program = tmp_path / "outside.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.retrieval.corpus.test_sandbox import answers\n"
        "from parallelmind.retrieval.corpus.sandbox.sandbox import Sandbox\n"
        f"print(answers(Sandbox(sys.argv[1]), Path(sys.argv[2]), {code!r}))\n"
    )
    command = [sys.executable, str(program), apart.kind, str(tmp_path)]
    environment = {**os.environ, "API_KEY": "s3cret", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    names = "HOME LC_ALL MKL_NUM_THREADS MPLBACKEND MPLCONFIGDIR OMP_NUM_THREADS OPENBLAS_NUM_THREADS PATH"
    found, few, environ, descriptors, count = eval(done.stdout)
    assert (found, few, descriptors, count) == (False, True, [0, 1, 2], 3)
    assert set(environ) - {"PWD", "LC_CTYPE"} == {*names.split(), "TMPDIR", "XDG_CACHE_HOME"}


def test_nothing_outside_is_read_or_written(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import json, os, sys
        folder, home, site = sys.argv[1:]
        def tried(what):
            try:
                what()
                return "done"
            except OSError:
                return "failed"
        for where in (folder, home, site, "/", "/etc", "/usr", "/dev", "/proc", "/proc/sys/kernel"):
            print(json.dumps(tried(lambda: open(os.path.join(where, "left_behind"), "w").close())))
        print(json.dumps(tried(lambda: os.listdir(home))))
        print(json.dumps(tried(lambda: open(os.path.join(folder, "secret")).read())))
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", sys.argv[0]):
            print(json.dumps(tried(lambda: os.close(os.open(path, os.O_WRONLY)))))
        print(json.dumps(tried(lambda: os.mknod("/scratch/disk", 0o060666, os.makedev(8, 0)))))
        print(json.dumps([name for name in os.listdir("/") if name in ("home", "root", "sys", "run", "mnt", "media")]))
        """
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "secret").write_text("s3cret")
    home = tmp_path / "someone"
    home.mkdir()
    site = os.path.dirname(os.path.dirname(psutil.__file__))
    *found, seen = answers(apart, tmp_path, code, str(folder), str(home), site)
    assert found == ["failed"] * 15
    # The interpreter may lie below a home; then the way to it is there, and nothing beside it.
    assert set(seen) <= {"home", "root"}
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert not any(Path(where, "left_behind").exists() for where in (home, site, "/", "/etc", "/usr", "/dev"))


def test_rights_cannot_be_had(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import ctypes, json, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(json.dumps([int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")]))
        print(json.dumps(status["NoNewPrivs"].strip()))
        print(json.dumps(os.getuid() == 0 or "0" in status["Groups"].split()))
        print(json.dumps([libc.unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000)]))
        print(json.dumps(libc.mount(b"none", b"/scratch", b"tmpfs", 0, None)))
        print(json.dumps(libc.setns(os.open("/proc/self/ns/net", os.O_RDONLY), 0)))
        print(json.dumps([libc.ptrace(16, 1, 0, 0), libc.chroot(b"/scratch")]))
        for name in ("mem", "environ", "maps"):
            try:
                print(json.dumps(len(open("/proc/1/" + name, "rb").read(1)) + 1))
            except OSError:
                print(json.dumps("closed"))
        """
    found = answers(apart, tmp_path, code)
    assert found == [[0] * 5, "1", False, [-1] * 3, -1, -1, [-1, -1], *["closed"] * 3]


def test_the_sandbox_of_pip(apart: Sandbox, tmp_path: Path) -> None:
    """With the network, and with the files of the user; and no more than that."""
    code = """
        import json, os, sys
        for path in sys.argv[1:]:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
                print(json.dumps("opened"))
            except OSError:
                print(json.dumps("closed"))
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(json.dumps([int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")]))
        """
    program, output, ours, other = (tmp_path / name for name in ("program.py", "printed", "ours", "other"))
    program.write_text(textwrap.dedent(code))
    for folder in (ours, other):
        folder.mkdir()
    paths = [ours / "x", other / "x", "/etc/x", "/usr/x", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"]
    result = apart.run(
        sys.executable, ["-I", "-S", str(program), *map(str, paths)], output, Limits(seconds=60),
        readable=[program], writable=[ours], network=True, own_files=True,
    )  # fmt: skip
    assert result.failure == ""
    assert [json.loads(line) for line in output.read_text().splitlines()] == ["opened", *["closed"] * 5, [0] * 3]
    assert (ours / "x").stat().st_uid == os.getuid()
    assert not list(other.iterdir())


@pytest.mark.skipif(not build_filter(), reason="system calls of this machine are not known")
def test_system_calls_that_get_around_limits_are_refused(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import ctypes, json, mmap, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        def refused(what):
            try:
                return what() == -1
            except OSError:
                return True
        print(json.dumps(refused(lambda: os.memfd_create("memory"))))
        print(json.dumps(refused(lambda: libc.shmget(0, 4096, 0o1600))))
        print(json.dumps(refused(lambda: libc.semget(0, 32000, 0o1600))))
        # Pages that all have let go of are still there, and no process has them.
        print(json.dumps(refused(lambda: mmap.mmap(-1, 4096))))
        print(json.dumps(refused(lambda: mmap.mmap(os.open("/dev/zero", os.O_RDONLY), 4096, prot=mmap.PROT_READ))))
        mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        print(json.dumps(refused(lambda: libc.syscall(ctypes.c_long(250), 0, -3, 0, 0, 0))))  # keyctl
        print(json.dumps(refused(lambda: libc.syscall(ctypes.c_long(425), 8, 0, 0, 0, 0))))  # io_uring_setup
        print(json.dumps([refused(lambda: socket.socket(family, kind).fileno()) for family, kind in
                          ((1, 1), (2, 1), (10, 1), (40, 1), (38, 5), (17, 3))]))
        """
    if os.uname().machine != "x86_64":
        code = code.replace("(250)", "(219)")
    assert answers(apart, tmp_path, code) == [*[True] * 7, [False, False, False, True, True, True]]


@pytest.mark.skipif(not build_filter(), reason="system calls of this machine are not known")
def test_a_crash_starts_no_program_outside(apart: Sandbox, tmp_path: Path) -> None:
    """Where core_pattern names a program, root of the machine runs it, unless this limit is 1."""
    code = """
        import ctypes, json, os, resource
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            print(json.dumps("lowered"))
        except (OSError, ValueError):
            print(json.dumps("refused"))
        with open("/proc/self/limits") as file:
            print(json.dumps(next(line.split()[4:6] for line in file if line.startswith("Max core"))))
        """
    assert answers(apart, tmp_path, code) == ["refused", ["1", "1"]]


FILL = """
    import json, os, sys
    total = 0
    places = ("/scratch", "/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~"), "/", "/dev", "/etc", "/run")
    for number, folder in enumerate(places):
        try:
            with open(os.path.join(folder, f"filled{number}"), "wb", buffering=0) as file:
                for _ in range(200):
                    total += file.write(bytes(2**20))
        except OSError:
            pass
    print(json.dumps(total // 2**20))
    """


def test_the_disk_cannot_be_filled(apart: Sandbox, tmp_path: Path) -> None:
    before = shutil.disk_usage(tmp_path).free
    (filled,) = answers(apart, tmp_path, FILL, scratch_bytes=16 * MIB)
    assert 8 <= filled <= 16
    assert shutil.disk_usage(tmp_path).free > before - 100 * MIB


def test_files_without_end(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import os
        for number in range(10**7):
            os.close(os.open(f"/scratch/{number}", os.O_CREAT))
        """
    result, _ = run(apart, tmp_path, code, scratch_bytes=16 * MIB, seconds=1 if apart.kind == "bubblewrap" else 60)
    # bwrap cannot limit their number: there only the time does.
    assert ("took too long" if apart.kind == "bubblewrap" else "No space left") in result.failure


def test_memory_of_one_process(apart: Sandbox, tmp_path: Path) -> None:
    result, _ = run(apart, tmp_path, "held = [bytearray(2**20) for _ in range(2000)]", memory_bytes=300 * MIB)
    assert "MemoryError" in result.failure


def test_memory_of_many_processes(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                held = bytearray(b"x") * (100 * 2**20)
                time.sleep(60)
        time.sleep(60)
        """
    result, _ = run(apart, tmp_path, code, memory_bytes=300 * MIB)
    assert result.excess == "took more than 300 MiB of memory"
    assert not result.survived


FORKS = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
# Of root in bubblewrap nothing but the look holds their number: here they do not double, lest the machine stands still.
FORKS_IN_LINE = """
    import os, time
    for _ in range(400):
        if os.fork() == 0:
            break
    time.sleep(30)
    """


def test_forks_without_end(apart: Sandbox, tmp_path: Path) -> None:
    held = apart.kind == "namespaces" or os.getuid() != 0
    result, _ = run(apart, tmp_path, FORKS if held else FORKS_IN_LINE, processes=40, threads=60, seconds=20)
    assert result.excess in ("started more than 40 processes", "took too long")
    assert not result.survived


def test_sleep_and_loops_end(apart: Sandbox, tmp_path: Path) -> None:
    for code in ("import time; time.sleep(1000)", "while True: pass"):
        result, _ = run(apart, tmp_path, code, seconds=1.0)
        assert result.failure == "took too long and was stopped"


def test_nothing_stays_behind(apart: Sandbox, tmp_path: Path) -> None:
    code = """
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                time.sleep(300)
            os._exit(0)
        """
    result, _ = run(apart, tmp_path, code)
    assert (result.failure, result.survived) == ("", False)
    # The same is noticed where nothing holds it; the daemon is ours to end.
    result, _ = run(NO_SANDBOX, tmp_path, code.replace("300", "5"))
    assert result.survived


def test_output_without_end(apart: Sandbox, tmp_path: Path) -> None:
    code = "import os, sys\nwhile True: os.write(int(sys.argv[1]), bytes(2**16))\n"
    result, printed = run(apart, tmp_path, code, "1", output_bytes=4 * MIB)
    assert result.excess == "wrote more than 4 MiB of results"
    assert len(printed) < 8 * MIB
    result, printed = run(apart, tmp_path, code, "2", log_bytes=4 * MIB)
    assert (result.excess, printed) == ("wrote more than 4 MiB of messages", "")
    assert len(result.stderr) <= 2000


def inspect(apart: Sandbox, tmp_path: Path, code: str) -> RuntimeReport:
    package = tmp_path / "package"
    (package / "odd").mkdir(parents=True)
    (package / "odd/__init__.py").write_text(textwrap.dedent(code))
    return inspect_package(apart, sys.executable, package, "odd", tmp_path, Limits(seconds=60, output_bytes=4 * MIB))


FORGED = """
    import json, os
    row = {{"path": "{name}", "names": ["{name}"], "type": "function", "doc": "Forged.", "signature": "()"}}
    lines = [{{"python": "3", "errors": {{}}}}, row, {{"complete": True}}]
    text = "".join(json.dumps(line) + "\\n" for line in lines).encode()
    for descriptor in range(1, 20):
        try:
            os.write(descriptor, text)
        except OSError:
            pass
    os._exit(0)
    """


def test_a_forged_description_is_about_the_package_alone(apart: Sandbox, tmp_path: Path) -> None:
    report = inspect(apart, tmp_path, FORGED.format(name="numpy.array"))
    assert "unusable description" in report.failure
    assert report.objects == []


def test_a_package_that_prints_without_end(apart: Sandbox, tmp_path: Path) -> None:
    code = "print('x' * 10**8)\ndef f():\n    '''Here.'''\n"
    assert [item.doc for item in inspect(apart, tmp_path, code).objects if item.type == "function"] == ["Here."]
    shutil.rmtree(tmp_path / "package")
    flood = "import os\nwhile True:\n    for number in range(3, 20):\n        try: os.write(number, bytes(2**16))\n"
    report = inspect(apart, tmp_path, flood + "        except OSError: pass\n")
    assert "wrote more than 4 MiB of results and was stopped" in report.failure
