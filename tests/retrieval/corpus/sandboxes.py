"""Sandboxes for tests; a machine may have none, and then tests of them are skipped and say why."""

from __future__ import annotations

import functools

import pytest

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.sandbox.probe import find_fault, find_sandbox
from parallelmind.retrieval.corpus.sandbox.sandbox import NO_SANDBOX, Kind, Sandbox

KINDS: tuple[Kind, ...] = ("bubblewrap", "namespaces")

fault_of = functools.cache(find_fault)


def sandbox_or_none() -> Sandbox:
    """The one that a build takes, for tests that are not about it."""
    try:
        return find_sandbox()
    except SettingsError:
        return NO_SANDBOX


def sandbox_or_skip(kind: Kind) -> Sandbox:
    if fault := fault_of(Sandbox(kind)):
        pytest.skip(f"no {kind} on this machine: {fault}")
    return Sandbox(kind)
