"""One check of an installation: what is examined, and the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from parallelmind.errors import ParallelMindError

Status = Literal["pass", "fail", "skip"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What is checked besides the installation itself."""

    base_model: str = "tiny"
    lora_path: str | None = None
    lora_rank: int | None = None
    """None: the adapter's own; 8 where an adapter is trained."""
    device: str | None = None
    """None: cuda, or cpu without a GPU."""
    dtype: str | None = None
    """None: float32 on a CPU, bfloat16 elsewhere."""


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
class Outcome:
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


def perform(check: Check) -> Outcome:
    """Run a check. Whatever it raises becomes its outcome; only Ctrl-C ends the program."""
    try:
        return _outcome(check, "pass", check.run())
    except NotApplicableError as reason:
        return _outcome(check, "skip", str(reason))
    except CheckFailedError as failure:
        return _outcome(check, "fail", str(failure), failure.remedy)
    except ParallelMindError as error:  # its message names the remedy for what it saw
        return _outcome(check, "fail", str(error))
    except (Exception, SystemExit) as error:
        return _outcome(check, "fail", f"{type(error).__name__}: {error}")


def _outcome(check: Check, status: Status, found: str, remedy: str | None = None) -> Outcome:
    shown = (remedy or check.remedy) if status == "fail" else ""
    return Outcome(group=check.group, name=check.name, status=status, found=found, remedy=shown)
