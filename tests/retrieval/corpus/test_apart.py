"""Builds of packages that try everything, and builds where there is no sandbox for them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.build import BuildOptions, build_corpora
from parallelmind.retrieval.corpus.meta import meta_file, read_meta
from parallelmind.retrieval.corpus.sandbox.probe import find_sandbox
from parallelmind.retrieval.corpus_rows import corpus_file, read_corpus
from tests.retrieval.corpus.wheels import SHAPES, make_sdist, make_wheel

# What it could do is the documentation of `evil.done`; `evil.here` is there when all of it has been tried.
EVIL = '''
    """Does what it should not."""
    import glob, os, socket, subprocess, sys, time

    tried = []

    def attempt(name, what):
        try:
            what()
            tried.append(name)
        except Exception:
            pass

    def has_secret(path):
        try:
            return b"s3cret" in open(path, "rb").read()
        except OSError:
            return False

    def environment():
        assert any(map(has_secret, glob.glob("/proc/[0-9]*/environ")))

    def parents():
        assert b"s3cret" in open(f"/proc/{os.getppid()}/environ", "rb").read()

    def write(path):
        with open(path, "w") as file:
            file.write("left behind")

    def daemon():
        if os.fork() == 0:
            os.setsid()
            time.sleep(1)
            write(PROJECT + "/daemon")
            os._exit(0)

    attempt("environment", environment)
    attempt("environment of a parent", parents)
    attempt("port", lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5))
    attempt("socket", lambda: socket.socket(socket.AF_UNIX).connect(SOCKET))
    attempt("abstract socket", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + SOCKET))
    attempt("home", lambda: write(HOME + "/left_behind"))
    attempt("project", lambda: write(PROJECT + "/left_behind"))
    attempt("corpus", lambda: write(PROJECT + "/corpora/left_behind"))
    attempt("site-packages", lambda: write(SITE + "/left_behind.py"))
    attempt("own files", lambda: write(os.path.dirname(__file__) + "/left_behind.py"))
    attempt("secret", lambda: open(PROJECT + "/secret").read())
    attempt("shadow", lambda: open("/etc/shadow").read())
    attempt("shared memory", lambda: write("/dev/shm/" + "x" * 255 + "/x"))
    attempt("daemon", daemon)
    print("x" * 10**8)

    def done(): ...
    done.__doc__ = "Done: " + ", ".join(sorted(tried)) + "."
    def here(): ...
    here.__doc__ = "All was tried."
    '''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules in it that nobody should import."""
    for name, value in {"NO_INDEX": "1", "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "secret").write_text("s3cret")
    for name in ("grp", "json", "socket", "resource", "packaging", "pip", "zipfile", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(folder)
    return folder


def command(*arguments: str) -> list[str]:
    """`parallelmind`, as its script starts it: without the current folder among the modules."""
    start = "import sys; from parallelmind.cli.main import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", start, *arguments]


def sandboxed() -> str:
    try:
        return find_sandbox().kind
    except SettingsError as error:
        pytest.skip(str(error))


def test_a_package_that_tries_everything(project: Path, tmp_path: Path) -> None:
    kind = sandboxed()
    home = tmp_path / "home"
    home.mkdir()
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as port, sockets[0], sockets[1]:
        where = f"/tmp/parallelmind-{os.getpid()}.socket"
        for one, address in zip(sockets, (where, f"\0{where}"), strict=True):
            one.bind(address)
            one.listen()
        names = {"PORT": port.getsockname()[1], "SOCKET": where, "HOME": str(home), "PROJECT": str(project)}
        names["SITE"] = str(Path(pytest.__file__).parents[1])
        code = "\n".join(f"    {name} = {value!r}" for name, value in names.items()) + EVIL
        make_wheel(tmp_path, {"evil/__init__.py": code}, name="evil")
        environment = {**os.environ, "HOME": str(home), "API_KEY": "s3cret"}
        flags = ["--corpus_path", "corpora", "--wheel", "../evil-1.0-py3-none-any.whl"]  # relative, as documented
        try:
            done = subprocess.run(
                command("corpus", "build", *flags), capture_output=True, text=True, env=environment, check=False
            )
        finally:
            os.unlink(where)
    assert done.returncode == 0, done.stderr
    rows = {row.path: row.doc for row in read_corpus(corpus_file(project / "corpora", "evil", "1.0"))}
    assert rows["evil.here"] == "All was tried."
    assert rows["evil.done"] == "Done: daemon."  # it was started, and ended with the package
    assert read_meta(meta_file(project / "corpora", "evil", "1.0")).sandbox == kind
    assert not [*tmp_path.rglob("left_behind*"), *tmp_path.rglob("daemon")]
    assert list(home.iterdir()) == []
    assert not (tmp_path / "imported").exists()
    assert not Path(names["SITE"], "left_behind.py").exists()


FILL = """
import os
for name in "ab":
    os.posix_fallocate(os.open("/scratch/" + name, os.O_CREAT | os.O_RDWR), 0, 300 * 2**20)
"""
TOO_MUCH = {
    "sleeps": ("import time; time.sleep(1000)", "took too long and was stopped"),
    "forks": ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", "and was stopped"),
    "eats": ("held = bytearray(2**33)", "MemoryError"),
    "talks": ("import os\nwhile True: os.write(2, bytes(2**16))", "MiB of messages and was stopped"),
    "fills": (FILL, "No space left on device"),
    "kills": ("import os; os.kill(1, 9); os.kill(-1, 9)", "No such process"),
}


@pytest.mark.slow  # the same, program by program, is in test_sandbox.py
def test_packages_that_take_too_much(project: Path, tmp_path: Path) -> None:
    sandboxed()
    for name, (code, _) in TOO_MUCH.items():
        make_wheel(tmp_path, {f"{name}/__init__.py": f"{code}\ndef f():\n    '''Here.'''\n"}, name=name)
    wheels = [str(path) for path in tmp_path.glob("*.whl")]
    flags = ["--corpus_path", "corpora", "--timeout", "8", "--jobs", "2", "--wheel", *wheels]
    done = subprocess.run(command("corpus", "build", *flags), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = {line.partition(" WARNING ")[2].partition(" ")[0]: line for line in done.stderr.splitlines()}
    for name, (_, message) in TOO_MUCH.items():
        assert f"{name} 1.0 is described by its files alone (" in said[name]
        assert message in said[name]
        rows = {row.path: row.doc for row in read_corpus(corpus_file(project / "corpora", name, "1.0"))}
        assert rows[f"{name}.f"] == "Here."


@pytest.mark.parametrize("flag", [pytest.param([], marks=pytest.mark.slow), ["--unsafe_inspection"]])
def test_a_source_archive_that_tries_everything(project: Path, tmp_path: Path, flag: list[str]) -> None:
    """Its setup.py, build backend and packages are read, and nothing of them runs; also where a wheel needs it."""
    if not flag:
        sandboxed()
    ran = f"open({str(tmp_path / 'imported')!r}, 'w').close()\n"
    backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    offered = tmp_path / "offered"
    files = {"evil/__init__.py": ran, "backend.py": ran, "pyproject.toml": backend}
    sdist = make_sdist(offered, files, name="evil")
    named = make_wheel(tmp_path, {"one.py": ""}, name="one", requires=("evil",))
    # By its address: there --only-binary is not heeded, and pip would run the build backend.
    addressed = make_wheel(tmp_path, {"two.py": ""}, name="two", requires=(f"evil @ {sdist.as_uri()}",))
    flags = ["--corpus_path", "corpora", "--wheel", str(sdist), str(named), str(addressed), *flag]
    environment = {**os.environ, "PIP_FIND_LINKS": str(offered)}
    done = subprocess.run(
        command("corpus", "build", *flags), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "evil 1.0 is described by its files alone (a source archive is not built)" in done.stderr
    assert "one 1.0 is described by its files alone (one-1.0-py3-none-any.whl does not install" in done.stderr
    assert "two 1.0 is described by its files alone (two-1.0-py3-none-any.whl does not install" in done.stderr
    assert "only wheels are downloaded, and nothing is built" in done.stderr
    assert not (tmp_path / "imported").exists()
    assert not (offered / "setup_ran").exists()


def test_without_a_sandbox_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise SettingsError("there is no sandbox")

    monkeypatch.setattr("parallelmind.retrieval.corpus.build.find_sandbox", none)
    wheel = make_wheel(tmp_path, SHAPES)

    def build(**flags: bool) -> str:
        options = BuildOptions(wheel=(wheel,), corpus_path=tmp_path / "corpora", overwrite=True, **flags)
        (result,) = build_corpora(options, lambda name, stage: None)
        return f"{result.error}{result.metas[0].runtime_python}{result.metas[0].sandbox}"

    with pytest.raises(SettingsError, match="there is no sandbox"):
        build()
    assert not (tmp_path / "corpora").exists()
    assert build(no_runtime=True) == ""
    assert build(unsafe_inspection=True).startswith("3.")


def test_a_system_that_permits_no_namespaces(project: Path, tmp_path: Path) -> None:
    """Really: in a user namespace that may have no further ones, neither kind can be made."""
    forbid = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        'echo 0 >/proc/sys/user/max_user_namespaces; "$@"',
        "x",
    ]
    if not shutil.which("unshare") or subprocess.run([*forbid, "true"], check=False).returncode != 0:
        pytest.skip("this system permits no namespaces at all, or has no unshare")
    wheel = make_wheel(tmp_path, {"evil/__init__.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n"}, name="evil")
    build = [*forbid, *command("corpus", "build", "--wheel", str(wheel), "--corpus_path", "corpora")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: there is no sandbox to run the packages in (namespaces: " in done.stderr
    assert "--no_runtime" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (project / "corpora").exists()
    done = subprocess.run([*build, "--no_runtime"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evil 1.0 is described by its files alone: it lacks names and texts" in done.stderr
    assert not (tmp_path / "ran").exists()
