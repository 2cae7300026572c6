"""One check of an installation: what is examined, and the result; and the checkout that it may run from."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from annotated_types import Ge

import parallelmind
from parallelmind.errors import ParallelMindError
from parallelmind.settings.model import TINY_MODEL, Device, LoraPath
from parallelmind.settings.setting import Flag, Setting, Settings

Status = Literal["pass", "fail", "skip"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Settings):
    """What is checked besides the installation itself."""

    base_model: Annotated[
        str,
        Setting(
            "model of the checks of inference and pos2d: Hub name, local folder, or tiny, the bundled one", "model",
            flag=Flag(metavar="MODEL"),
        ),
    ] = TINY_MODEL  # fmt: skip
    lora_path: LoraPath = None
    lora_rank: Annotated[
        int | None,
        Ge(1),
        Setting(
            "the rank that the adapter must have; also that of the training check", "model",
            default="the adapter's own; 8 in the check",
        ),
    ] = None  # fmt: skip
    device: Device = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Setting("number format of the weights", "model", default="float32 on a CPU, bfloat16 elsewhere"),
    ] = None


class CheckFailedError(Exception):
    """A check found something wrong; the message says what, `remedy` overrides the check's own."""

    def __init__(self, found: str, remedy: str | None = None):
        super().__init__(found)
        self.remedy = remedy


class NotApplicableError(Exception):
    """What a check examines is not here, and need not be; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to examine."""

    group: str
    name: str
    run: Callable[[], str]
    """Returns what was found. Raises NotApplicableError to skip; anything else that it raises is a failure."""
    remedy: str
    """What to do when it fails."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The outcome of a check."""

    group: str
    name: str
    status: Status
    found: str
    remedy: str = ""
    """Set when the check failed."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A difference between logits that must be nothing but rounding or, with `must_differ`, more than that."""

    difference: float
    """The largest one."""
    limit: float
    must_differ: bool = False

    @property
    def holds(self) -> bool:
        if self.must_differ:
            return self.difference > self.limit
        return self.difference <= self.limit  # not for NaN

    def __str__(self) -> str:
        return f"max |difference| {self.difference:.2g}, {'above' if self.must_differ else 'at most'} {self.limit:.2g}"


class Once(Generic[T]):
    """Something that several checks need, made when the first one asks.

    If that fails or is not applicable, the first check says so, and the others are skipped instead of repeating it.
    """

    def __init__(self, make: Callable[[], T], what: str):
        self._make = make
        self._what = what
        self._made: T | None = None
        self._reason: str | None = None

    def __call__(self) -> T:
        if self._reason is not None:
            raise NotApplicableError(self._reason)
        if self._made is None:
            try:
                self._made = self._make()
            except BaseException as error:
                came = "was skipped" if isinstance(error, NotApplicableError) else "failed"
                self._reason = f"not reached: {self._what} {came}"
                raise
        return self._made


def perform(check: Check) -> CheckResult:
    """Run a check. Whatever it raises becomes its result; only Ctrl-C ends the program."""
    try:
        return _result(check, "pass", check.run())
    except NotApplicableError as reason:
        return _result(check, "skip", str(reason))
    except CheckFailedError as failure:
        return _result(check, "fail", str(failure), failure.remedy)
    except ParallelMindError as error:  # its message names the remedy for what it saw
        return _result(check, "fail", str(error))
    except (Exception, SystemExit) as error:
        return _result(check, "fail", f"{type(error).__name__}: {error}")


def _result(check: Check, status: Status, found: str, remedy: str | None = None) -> CheckResult:
    shown = (remedy or check.remedy) if status == "fail" else ""
    return CheckResult(group=check.group, name=check.name, status=status, found=found, remedy=shown)


def find_checkout() -> Path | None:
    """The root of the repository, or None when the package was installed without it."""
    root = Path(parallelmind.__file__).resolve().parents[2]
    return root if (root / "src" / "parallelmind").is_dir() and (root / "pyproject.toml").is_file() else None


def checkout_root() -> Path:
    """The root of the repository. Raises NotApplicableError when there is none."""
    root = find_checkout()
    if root is None:
        raise NotApplicableError("installed as a package: this is part of a checkout only")
    return root


def checkout_project() -> dict[str, Any]:
    """The project table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((checkout_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table
