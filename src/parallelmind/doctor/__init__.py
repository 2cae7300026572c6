"""The checks of `parallelmind doctor`, one module per group."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from parallelmind.doctor.check import Check, CheckResult, DoctorOptions, Subject, perform

__all__ = ["GROUPS", "DoctorOptions", "CheckResult", "Subject", "examine"]

GROUPS = ("imports", "versions", "devices", "training", "inference", "documents", "pos2d", "files")
"""Each is a module here, whose function `checks` lists the checks of the group for a subject."""


def examine(
    subject: Subject, groups: Sequence[str] = GROUPS, *, begin: Callable[[str, Check], None]
) -> list[CheckResult]:
    """Run the checks of the groups, in the order of GROUPS; `begin` is called with group and check before it runs."""
    results = []
    for group in GROUPS:
        if group in groups:
            for check in _checks(group, subject):
                begin(group, check)
                results.append(perform(group, check))
    return results


def _checks(group: str, subject: Subject) -> list[Check]:
    try:
        checks: list[Check] = importlib.import_module(f"{__name__}.{group}").checks(subject)
    except Exception as error:  # a torch that cannot load its libraries raises OSError, and so on
        return [_not_startable(error)]
    return checks


def _not_startable(error: Exception) -> Check:
    def run() -> str:
        raise error

    remedy = "Install again what the error names, or everything: pip install --force-reinstall parallelmind"
    return Check("start the checks", run, remedy)
