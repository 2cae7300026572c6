"""Our pip, which downloads wheels and runs nothing of them: as its user has configured it, and in a sandbox."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.corpus.sandbox.running import CommandResult, Limits, printable
from parallelmind.retrieval.corpus.sandbox.sandbox import Sandbox

_DOWNLOADER = Path(__file__).with_name("downloader.py")
MAX_ARCHIVE = 4 * 2**30
_SECONDS = 1800.0
_CONFIG_SECONDS = 60
_LIMITS = Limits(
    seconds=_SECONDS,
    memory_bytes=8 * 2**30,
    processes=16,
    scratch_bytes=64 * 2**20,
    file_bytes=MAX_ARCHIVE,
    open_files=1024,
    output_bytes=2**20,
)
# How to reach an index; what to install, and where to, is our own affair.
_SETTINGS = frozenset(
    {
        *("index-url", "extra-index-url", "no-index", "find-links", "trusted-host", "cert", "client-cert", "proxy"),
        *(
            "timeout",
            "default-timeout",
            "retries",
            "use-feature",
            "use-deprecated",
            "pre",
            "constraint",
            "prefer-binary",
        ),
    }
)
_ENVIRONMENT = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


def pip_settings() -> Mapping[str, str]:
    """What `pip config list` shows of its files and of the environment: name and value, several with spaces between."""
    return _listed(tuple(item for item in os.environ.items() if item[0].startswith("PIP_")))


@functools.cache
def _listed(environment: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    command = [sys.executable, "-P", "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=_CONFIG_SECONDS, check=False)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():  # later lines win: the environment comes last
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "download", ":env:"):
            try:
                settings[name] = " ".join(str(ast.literal_eval(value)).split())
            except (SyntaxError, ValueError):
                settings[name] = value.strip()
    return settings


class Pip:
    """Downloads for one package."""

    def __init__(self, sandbox: Sandbox, scratch: Path, cache: Path) -> None:
        """`scratch` is an absolute folder for what is needed for a while, `cache` one for pip's own cache."""
        self._sandbox, self._scratch, self._cache = sandbox, scratch, cache

    def download(
        self,
        what: str | Path,
        folder: Path,
        python: str | None = None,
        *,
        dependencies: bool = False,
        constraints: Sequence[str] = (),
    ) -> None:
        """Wheels of a requirement, or of a file and what it depends on, for an interpreter (default: ours).

        Raises:
            DataError: there are none; says what pip says.
            SettingsError: there is no pip, or it takes too much.
        """
        temporary, rules = self._scratch / "pip", self._scratch / "constraints.txt"
        for path in (folder, temporary, self._cache):
            path.mkdir(parents=True, exist_ok=True)
        rules.write_text("".join(f"{rule}\n" for rule in constraints))
        arguments = ["download", "--quiet", "--only-binary=:all:", f"--dest={folder}", f"--constraint={rules}"]
        arguments += [] if dependencies else ["--no-deps"]
        seen = [rules, what] if isinstance(what, Path) else [rules]
        result = self._run([*arguments, str(what)], python or sys.executable, seen, [folder, temporary, self._cache])
        if result.excess:
            raise SettingsError(f"pip {result.failure}; check the network, and start again.")
        if result.returncode != 0:
            raise DataError(_words(result))
        for path in folder.iterdir():
            if not stat.S_ISREG(path.lstat().st_mode):
                raise DataError(f"pip has made {path.name!r:.200}, which is not an archive.")

    def _run(self, arguments: Sequence[str], python: str, seen: list[Path], writable: list[Path]) -> CommandResult:
        found = importlib.util.find_spec("pip")
        if found is None or found.origin is None:
            raise SettingsError(
                f"{sys.executable} has no pip: run python -m ensurepip, or give the archive with --wheel."
            )
        code = Path(found.origin).parent
        environment, files = _configured()
        environment |= {"PIP_CACHE_DIR": str(self._cache), "TMPDIR": str(self._scratch / "pip")}
        return self._sandbox.run(
            python,
            ["-I", "-B", str(_DOWNLOADER), str(code), *arguments],
            self._scratch / "pip.out",
            _LIMITS,
            readable=[_DOWNLOADER, code, *seen, *files],
            writable=writable,
            environment=environment,
            network=True,
            own_files=True,
        )


def _configured() -> tuple[dict[str, str], list[Path]]:
    """The environment that stands for pip's configuration, and the files that it names."""
    environment = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    netrc = Path(os.path.expanduser(os.environ.get("NETRC", "~/.netrc")))
    files = [netrc] if netrc.is_file() else []
    if files:
        environment["NETRC"] = str(netrc.absolute())
    for name, value in pip_settings().items():
        if name in _SETTINGS:
            words = [_absolute(word) for word in value.split()]
            environment[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(words)
    for name, value in environment.items():
        paths = [Path(word.removeprefix("file://")) for word in value.split() if word.startswith(("/", "file:///"))]
        # The pages of an index on disk link to a folder beside them.
        files += [path.parent for path in paths if path.parent.name] if name.endswith("INDEX_URL") else paths
    return environment, [path.absolute() for path in files if path.exists() and str(path) != os.devnull]


def _absolute(word: str) -> str:
    return os.path.abspath(word) if os.path.exists(word) else word


def _words(result: CommandResult) -> str:
    """The line of pip's messages that says what was wrong."""
    lines = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    return printable(lines[0]) if lines else result.failure
