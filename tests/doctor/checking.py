"""One check of the doctor, or a group of them."""

from __future__ import annotations

import importlib

from parallelmind.doctor import CheckResult, DoctorOptions, Subject, examine
from parallelmind.doctor.check import Check, perform

DEFAULT = Subject()


def with_model(**options: object) -> Subject:
    """This installation, with other options."""
    return Subject(options=DoctorOptions(**options))  # type: ignore[arg-type]


def results(group: str, subject: Subject = DEFAULT) -> dict[str, CheckResult]:
    return {result.name: result for result in examine(subject, [group], begin=lambda group, check: None)}


def result(group: str, name: str, subject: Subject = DEFAULT) -> CheckResult:
    checks: list[Check] = importlib.import_module(f"parallelmind.doctor.{group}").checks(subject)
    return outcomes(checks, name)[name]


def outcomes(checks: list[Check], *names: str) -> dict[str, CheckResult]:
    """Run checks in their order: those of the names, or all."""
    return {check.name: perform("any", check) for check in checks if not names or check.name in names}


def assert_fails(found: CheckResult, *words: str) -> None:
    assert found.status == "fail", found
    for word in words:
        assert word in found.found
    assert found.remedy
