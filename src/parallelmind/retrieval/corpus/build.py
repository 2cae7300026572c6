"""Build the corpora of many packages: a process for each, several at a time; finished ones are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from annotated_types import Ge, Gt
from packaging.version import Version

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.fetch import open_archive
from parallelmind.retrieval.corpus.meta import CorpusMeta, read_metas
from parallelmind.retrieval.corpus.names import parse_request
from parallelmind.retrieval.corpus.package import PackageTask
from parallelmind.retrieval.corpus.sandbox.probe import find_sandbox
from parallelmind.retrieval.corpus.sandbox.sandbox import Kind
from parallelmind.retrieval.corpus_rows import CORPUS_TYPES
from parallelmind.settings.setting import Flag, Setting, Settings

_SHOWN_OF_STDERR = 300
# The current folder is not searched for modules (-P), and this package is found where it is now.
_START = f"""
import sys
if (root := {str(Path(__file__).parents[3])!r}) not in sys.path:
    sys.path.insert(0, root)
from parallelmind.retrieval.corpus.worker import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class BuildOptions(Settings):
    """What to build and how; the names are the flags.

    Raises:
        SettingsError: a value is out of range, or there is nothing to build.
    """

    packages: tuple[str, ...] = ()
    """Such as numpy==1.26.4."""
    wheel: Annotated[tuple[Path, ...], Setting("wheels or source archives on disk", flag=Flag(form="list"))] = ()
    corpus_path: Annotated[Path, Setting("folder of corpora", flag=Flag(metavar="DIR"))]
    corpus_type: Annotated[Literal["docstring", "srccodes", "both"], Setting("what the rows hold as doc")] = "docstring"
    jobs: Annotated[int, Ge(1), Setting("packages to build at the same time")] = 1
    python: Annotated[
        str | None,
        Setting(
            "the interpreter that installs and inspects the packages, or none", default="this one",
            flag=Flag(metavar="PATH"),
        ),
    ] = None  # fmt: skip
    no_runtime: Annotated[bool, Setting("run no code of the packages, the same as --python none")] = False
    unsafe_inspection: Annotated[
        bool, Setting("run the code of the packages without a sandbox: it may do whatever you may")
    ] = False
    timeout: Annotated[
        float, Gt(0), Setting("seconds to read a package's files, and for each inspection", flag=Flag(metavar="S"))
    ] = 300.0
    overwrite: Annotated[bool, Setting("build finished versions again")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.packages and not self.wheel:
            raise SettingsError("nothing to build: name packages, as numpy==1.26.4, or give archives with --wheel.")
        for request in self.packages:
            parse_request(request)
        if self._names_interpreter and shutil.which(str(self.python)) is None:
            raise SettingsError(f"--python {self.python} is not an interpreter that can be run; give its path or name.")

    @property
    def _names_interpreter(self) -> bool:
        return self.python is not None and self.python != "none" and not self.no_runtime

    @property
    def corpus_types(self) -> list[str]:
        return list(CORPUS_TYPES) if self.corpus_type == "both" else [self.corpus_type]

    @property
    def interpreter(self) -> str:
        """The interpreter that inspects; "" for none."""
        if self.no_runtime or self.python == "none":
            return ""
        return os.path.abspath(str(shutil.which(self.python))) if self.python else sys.executable


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The result of building one package."""

    name: str
    metas: list[CorpusMeta]
    error: str = ""
    kept: bool = False
    """It had been built before."""


def build_corpora(options: BuildOptions, on_stage: Callable[[str, str], None]) -> Iterator[BuildResult]:
    """Yield a result for each package, in the order they end; `on_stage(package, stage)` is called from threads.

    Raises:
        SettingsError: `corpus_path` cannot be written, or packages are to run and there is no sandbox for them.
    """
    waiting = {}
    for name, task in _tasks(options).items():
        metas = [] if options.overwrite else _finished(task, options)
        if metas:
            yield BuildResult(name, metas, kept=True)
        else:
            waiting[name] = task
    if not waiting:
        return
    kind = _sandbox(options)
    work = _work_folder(options.corpus_path)
    runner = _Runner(work, on_stage)
    pool = ThreadPoolExecutor(options.jobs)
    try:
        futures = [
            pool.submit(runner.run, name, dataclasses.replace(task, sandbox=kind)) for name, task in waiting.items()
        ]
        for future in as_completed(futures):
            yield future.result()
    finally:
        runner.stop()
        pool.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            work.rmdir()


def _sandbox(options: BuildOptions) -> Kind:
    """Where the packages and pip run; pip runs no code of packages, and may do without."""
    if options.unsafe_inspection:
        return ""
    try:
        return find_sandbox().kind
    except SettingsError:
        if options.interpreter:
            raise
        return ""


class _Runner:
    """Runs worker processes, and ends those that run when it is told to stop."""

    def __init__(self, work: Path, on_stage: Callable[[str, str], None]) -> None:
        self._work, self._on_stage = work, on_stage
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, name: str, task: PackageTask) -> BuildResult:
        with tempfile.TemporaryDirectory(
            dir=self._work, prefix=f"{os.getpid()}-", ignore_cleanup_errors=True
        ) as folder:
            process = self._start(task, folder)
            if process is None:
                return BuildResult(name, [], "stopped")
            try:
                return self._follow(name, process, Path(folder) / "stderr")
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _start(self, task: PackageTask, folder: str) -> subprocess.Popen[str] | None:
        arguments = [json.dumps(dataclasses.asdict(task)), folder]
        with self._lock, (Path(folder) / "stderr").open("wb") as stderr:
            if self._stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, *arguments],
                stdin=subprocess.PIPE,  # closed when we end, however we end: then the worker ends too
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C reaches this process, which then ends the workers
            )
            self._running.add(process)
            return process

    def _follow(self, name: str, process: subprocess.Popen[str], stderr: Path) -> BuildResult:
        message: dict[str, Any] = {}
        assert process.stdout is not None
        assert process.stdin is not None
        with process.stdin, process.stdout:
            for line in process.stdout:
                message = json.loads(line)
                if "stage" in message:
                    self._on_stage(name, message["stage"])
        code = process.wait()
        if "metas" in message:
            return BuildResult(name, [CorpusMeta(**meta) for meta in message["metas"]])
        if "error" in message:
            return BuildResult(name, [], message["error"])
        said = stderr.read_text("utf-8", "replace").strip()[-_SHOWN_OF_STDERR:]
        stage = f" while {message['stage']}" if "stage" in message else ""
        return BuildResult(name, [], f"the process that built it ended with code {code}{stage}: {said or 'no message'}")


def _tasks(options: BuildOptions) -> dict[str, PackageTask]:
    def task(request: str, archive: str) -> PackageTask:
        return PackageTask(
            request=request,
            archive=archive,
            corpus_path=str(options.corpus_path.absolute()),
            corpus_types=options.corpus_types,
            python=options.interpreter,
            own_python=options.python is None,
            timeout=options.timeout,
        )

    tasks = {str(parse_request(text)): task(text, "") for text in options.packages}
    return tasks | {path.name: task("", str(path.absolute())) for path in options.wheel}


def _finished(task: PackageTask, options: BuildOptions) -> list[CorpusMeta]:
    """What a request asks for, if all of it has been built already."""
    if task.archive:
        archive = open_archive(Path(task.archive))
        distribution, version, sha256 = archive.distribution, Version(archive.version), archive.sha256
    else:
        request = parse_request(task.request)
        if request.version is None:  # what it stands for may have changed
            return []
        distribution, version, sha256 = request.distribution, request.version, None
    metas = [
        meta
        for meta in read_metas(options.corpus_path)
        if (meta.distribution, Version(meta.version)) == (distribution, version) and sha256 in (None, meta.wheel_sha256)
    ]
    complete = bool(metas) and {meta.import_name for meta in metas} == set(metas[0].import_names)
    return metas if complete and all(meta.covers(task.corpus_types, task.runtime_requested) for meta in metas) else []


def _work_folder(corpus_path: Path) -> Path:
    """Where workers keep what they need for a while; what a killed build left there is deleted.

    An absolute path, since what a worker starts runs in another folder.
    """
    work = corpus_path.absolute() / ".work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        for left in work.iterdir():
            pid = left.name.partition("-")[0]
            if not pid.isdigit() or not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise SettingsError(
            f"--corpus_path {corpus_path} cannot be written: {error.strerror}; permit it, or choose another folder."
        ) from error
    return work
