"""The environments that hold one version each, and asking in them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
_LONGEST = 1800


@dataclass(frozen=True, slots=True)
class Environment:
    package: str
    version: str
    roots: tuple[str, ...]
    prelude: str
    beside: tuple[str, ...]
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self) -> None:
        """Make the environment, if it is not there."""
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
            packages = [f"{self.package}=={self.version}", *self.beside]
            subprocess.run([self.python, "-m", "pip", "install", "-q", *packages], check=True)

    def walk(self) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
        """Every public name with type and origin, and the modules that cannot be imported."""
        *rows, last = self._run("walk", {"roots": self.roots})
        return [(name, kind, origin) for name, kind, origin in rows], last["unimportable"]

    def probe(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        return {found["name"]: found for found in self._run("probe", {"names": sorted(set(names))})}

    def _run(self, script: str, task: dict[str, Any]) -> list[Any]:
        done = subprocess.run(
            [self.python, "-m", f"truth.{script}"],
            cwd=HERE.parent,
            input=json.dumps(task | {"prelude": self.prelude}),
            capture_output=True,
            text=True,
            timeout=_LONGEST,
        )
        if done.returncode:
            raise SystemExit(f"{script} of {self.package} {self.version}: {done.stderr[-2000:]}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def environments(folder: Path) -> Iterator[Environment]:
    for package, said in read_yaml("versions").items():
        for version, beside in said["versions"].items():
            yield Environment(
                package=package,
                version=version,
                roots=tuple(said.get("roots", [package])),
                prelude=said.get("prelude", ""),
                beside=tuple(beside),
                folder=folder / f"{package}-{version}",
            )


def read_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    return content
