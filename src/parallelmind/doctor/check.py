"""One check of an installation: what is examined, and the result."""

from __future__ import annotations

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

    def placement(self) -> dict[str, Any]:
        """The device and dtype that a check loads a model with. Raises SettingsError if the device is not there."""
        from parallelmind.models.loader import resolve_device  # transformers takes seconds to import

        device, _ = resolve_device(self.device)
        return {"device": device, "dtype": self.dtype or ("float32" if device == "cpu" else "bfloat16")}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined: an installation, by default the one that runs, and a model."""

    options: DoctorOptions = DoctorOptions()
    package: Path = Path(parallelmind.__file__).parent
    """The folder of the package. Its name is that of the module, and of the distribution as pip knows it."""
    driver: Path = Path("/proc/driver/nvidia/version")
    """The file that is there while the NVIDIA driver is loaded."""

    @property
    def checkout(self) -> Path | None:
        """The root of the repository, or None when the package was installed without it."""
        source = self.package.resolve().parent
        return source.parent if source.name == "src" and (source.parent / "pyproject.toml").is_file() else None

    def checkout_root(self) -> Path:
        """The root of the repository. Raises NotApplicableError when there is none."""
        if self.checkout is None:
            raise NotApplicableError("installed as a package: this is part of a checkout only")
        return self.checkout


class CheckFailedError(Exception):
    """A check found something wrong; the message says what, `remedy` overrides the check's own."""

    def __init__(self, found: str, remedy: str | None = None):
        super().__init__(found)
        self.remedy = remedy


class NotApplicableError(Exception):
    """What a check examines is not here, and need not be; the message says why."""


@dataclass(frozen=True)
class Check:
    """One thing to examine."""

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


def perform(group: str, check: Check) -> CheckResult:
    """Run a check. Whatever it raises becomes its result; only Ctrl-C ends the program."""
    status: Status = "fail"
    remedy = check.remedy
    try:
        found = check.run()
        status = "pass"
    except NotApplicableError as reason:
        found, status = str(reason), "skip"
    except CheckFailedError as failure:
        found, remedy = str(failure), failure.remedy or check.remedy
    except ParallelMindError as error:  # its message names the remedy for what it saw
        found = str(error)
    except (Exception, SystemExit) as error:
        found = f"{type(error).__name__}: {error}"
    remedy = remedy if status == "fail" else ""
    return CheckResult(group=group, name=check.name, status=status, found=found, remedy=remedy)
