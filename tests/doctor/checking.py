"""One check of the doctor, or a group of them."""

from __future__ import annotations

import importlib

from parallelmind.doctor import CheckResult, DoctorOptions, examine
from parallelmind.doctor.check import Check, perform

DEFAULT = DoctorOptions()


def results(group: str, options: DoctorOptions = DEFAULT) -> dict[str, CheckResult]:
    return {result.name: result for result in examine(options, [group], begin=lambda check: None)}


def result(group: str, name: str, options: DoctorOptions = DEFAULT) -> CheckResult:
    checks: list[Check] = importlib.import_module(f"parallelmind.doctor.{group}").checks(options)
    return perform(next(check for check in checks if check.name == name))


def assert_fails(found: CheckResult, *words: str) -> None:
    assert found.status == "fail", found
    for word in words:
        assert word in found.found
    assert found.remedy
