"""The trial of a sandbox finds what leaks, and the filter of system calls says what it should."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus.sandbox import probe
from parallelmind.retrieval.corpus.sandbox.probe import find_fault
from parallelmind.retrieval.corpus.sandbox.sandbox import NO_SANDBOX, Sandbox
from parallelmind.retrieval.corpus.sandbox.syscalls import build_filter
from tests.retrieval.corpus.sandboxes import KINDS, sandbox_or_skip

MIB = 2**20


@pytest.fixture(params=KINDS)
def apart(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_or_skip(request.param)


LEAKS = {
    "a port": {"network": True},
    "a file of yours was read": {"readable": [("/tmp", "/tmp")], "links": {}},
    "reached by its path": {"readable": [("/tmp", "/tmp")], "links": {}},
    "written outside": {"writable": [("/tmp", "/tmp")], "links": {}},
    "no end to the folder": {"scratch_bytes": 64 * MIB},
    "a limit is not set": {"limits": {}},
}


@pytest.mark.parametrize("words", LEAKS)
def test_a_sandbox_that_leaks_is_not_used(apart: Sandbox, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """The trial tries, and does not only look whether a program is there."""

    class Leaking(Sandbox):
        def plan(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            plan = super().plan(*arguments, **options)
            for name, value in LEAKS[words].items():
                if isinstance(value, list):
                    plan[name] = [*plan[name], *value]
                elif name == "links":
                    plan[name] = {link: path for link, path in plan[name].items() if link != "/tmp"}
                else:
                    plan[name] = value
            return plan

    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr("tempfile.tempdir", None)
    assert words in find_fault(Leaking(apart.kind))


def test_settings_of_the_kernel_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """bwrap leaves /proc/sys open to root; the launcher closes it."""
    apart = sandbox_or_skip("bubblewrap")
    if os.getuid() != 0:
        pytest.skip("only root could write to them")
    plan = Sandbox.plan
    opened = {"writable": [("/proc/sys", "/proc/sys")]}
    monkeypatch.setattr(Sandbox, "plan", lambda *given: plan(*given) | opened)
    assert "settings of the kernel were open for writing" in find_fault(apart)


def test_no_sandbox_is_not_taken_for_one() -> None:
    fault = find_fault(NO_SANDBOX)
    for words in ("a port", "its path", "was read", "outside", "processes", "rights left", "outlived"):
        assert words in fault


def test_what_is_wrong_with_each_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "find_fault", lambda apart: f"{apart.kind} leaks")
    with pytest.raises(SettingsError) as caught:
        probe.find_sandbox.__wrapped__()
    for words in ("bubblewrap leaks", "namespaces leaks", "install bubblewrap", "--no_runtime", "--unsafe_inspection"):
        assert words in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_fault(Sandbox("bubblewrap")) == "bwrap is not on PATH"
    monkeypatch.setattr(probe.sys, "platform", "darwin")
    assert find_fault(Sandbox("namespaces")) == "needs Linux"


def test_root_gets_no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel exempts root from the limit of processes, so that one that forks without end stops the machine."""
    monkeypatch.setattr(probe, "find_fault", lambda apart: "leaks" if apart.kind == "namespaces" else "")
    monkeypatch.setattr(probe.os, "geteuid", lambda: 1000)
    assert probe.find_sandbox.__wrapped__() == Sandbox("bubblewrap")
    monkeypatch.setattr(probe.os, "geteuid", lambda: 0)
    with pytest.raises(SettingsError, match="bubblewrap: it does not limit how many processes root starts"):
        probe.find_sandbox.__wrapped__()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filters_jump_to_where_they_should(machine: str) -> None:
    """A small machine for the program, as the kernel has it: a few calls that must pass, and a few that must not."""
    code = build_filter(machine)
    program = [struct.unpack_from("=HBBI", code, place) for place in range(0, len(code), 8)]
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

    def result(number: int, *given: int, of: str = machine) -> int:
        arguments = dict(enumerate(given))
        data = {16 + 4 * half: (arguments.get(half // 2, 0) >> 32 * (half % 2)) & 0xFFFFFFFF for half in range(12)}
        value, place = 0, 0
        data |= {0: number, 4: arch[of]}
        while True:
            operation, if_true, if_false, operand = program[place]
            place += 1
            if operation == 0x06:
                return operand
            if operation == 0x20:
                value = data[operand]
            else:
                holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
                place += if_true if holds else if_false

    allowed, refused = 0x7FFF0000, 0x00050000
    clone, openat, mount, network = {"x86_64": (56, 257, 165, 41), "aarch64": (220, 56, 40, 198)}[machine]
    assert result(openat) == result(clone, 0x01200011) == allowed
    assert [result(network, family) for family in (1, 2, 10, 16)] == [allowed] * 4
    assert result(network, 40) == refused | 97
    assert result(mount) == result(clone, 0x10000011) == refused | 1
    assert result(435) == refused | 38  # clone3
    setrlimit, prlimit = {"x86_64": (160, 302), "aarch64": (164, 261)}[machine]
    assert result(setrlimit, 4) == result(prlimit, 0, 4, 0x1000) == result(prlimit, 0, 4, 1 << 32) == refused | 1
    assert result(setrlimit, 7) == result(prlimit, 4, 7, 0x1000) == result(prlimit, 0, 4, 0) == allowed
    mmap = {"x86_64": 9, "aarch64": 222}[machine]
    assert [result(mmap, 0, 1, 3, flags) for flags in (0x21, 0x23)] == [refused | 1] * 2  # shared, without a file
    assert [result(mmap, 0, 1, 3, flags) for flags in (0x01, 0x02, 0x22)] == [allowed] * 3
    other = "aarch64" if machine == "x86_64" else "x86_64"
    assert result(openat, of=other) == 0x80000000
    assert build_filter("riscv64") == b""
