"""The checks of `parallelmind doctor`, one module per group."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence

from parallelmind.doctor.check import Check, CheckResult, DoctorOptions, perform

__all__ = ["GROUPS", "DoctorOptions", "CheckResult", "examine"]

GROUPS = ("imports", "versions", "devices", "training", "inference", "documents", "pos2d", "files")
"""Each is a module here, whose function `checks` lists the checks of the group."""


def examine(
    options: DoctorOptions, groups: Sequence[str] = GROUPS, *, begin: Callable[[Check], None]
) -> list[CheckResult]:
    """Run the checks of the groups, in the order of GROUPS; `begin` is called with each before it runs."""
    results = []
    for check in _checks(options, groups):
        begin(check)
        results.append(perform(check))
    return results


def _checks(options: DoctorOptions, groups: Sequence[str]) -> Iterable[Check]:
    for group in GROUPS:
        if group in groups:
            try:
                checks: list[Check] = importlib.import_module(f"{__name__}.{group}").checks(options)
            except Exception as error:  # a torch that cannot load its libraries raises OSError, and so on
                checks = [_not_startable(group, error)]
            yield from checks


def _not_startable(group: str, error: Exception) -> Check:
    def run() -> str:
        raise error

    remedy = "Install again what the error names, or everything: pip install --force-reinstall parallelmind"
    return Check(group=group, name="start the checks", run=run, remedy=remedy)
