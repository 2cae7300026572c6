"""One check of the doctor, or a group of them."""

from __future__ import annotations

import importlib

from parallelmind.doctor import DoctorOptions, Outcome, examine
from parallelmind.doctor.check import Check, perform

DEFAULT = DoctorOptions()


def outcomes(group: str, options: DoctorOptions = DEFAULT) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in examine(options, [group], begin=lambda check: None)}


def outcome(group: str, name: str, options: DoctorOptions = DEFAULT) -> Outcome:
    checks: list[Check] = importlib.import_module(f"parallelmind.doctor.{group}").checks(options)
    return perform(next(check for check in checks if check.name == name))


def assert_fails(found: Outcome, *words: str) -> None:
    assert found.status == "fail", found
    for word in words:
        assert word in found.found
    assert found.remedy
