"""Shared by all tests."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

# Before torch is imported, and for the programs that tests start: see parallelmind.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tests name models that nobody has; without a network each question to the Hub about one takes 20 seconds to fail.
os.environ["HF_HUB_OFFLINE"] = "1"
# What libraries compile as they are imported (bitsandbytes, for two seconds) and nobody calls.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Where nothing may be kept of what is compiled, each worker and each program compiles the package and the tests anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Kernels for GPUs are interpreted where there is none; Triton decides so when it is imported.
if os.environ.get("PARALLELMIND_TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # whose programs have the folder of the one that started them
    _downloaded = tempfile.TemporaryDirectory(prefix="parallelmind-tests-")
    os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = _downloaded.name

import pytest
import torch
from hypothesis import HealthCheck, settings

from parallelmind.settings.model import ModelOptions

# Programs that a shell starts in the background, and theirs, ignore Ctrl-C; tests press it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The models are tiny: a second thread costs more than it brings, most of all when other programs run.
torch.set_num_threads(1)

# Examples are the same in every run, and none fails because the machine is busy.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

FIRST = (
    "docs/test_commands.py",
    "cli/test_batch_real.py",
    "compatibility/test_batch.py",
    "engine/test_windows.py",
    "engine/test_equalities.py",
    "engine/test_same_bits.py",
    "engine/test_join.py",
    "engine/test_fork.py",
    "engine/test_adapters.py",
    "server/page/",
    "compatibility/test_workers.py",
    "compatibility/test_train_files.py",
    "server/test_process.py",
    "test_wheel.py",
)
"""Files that take longest: begun last, one of them would run alone at the end."""

_running: list[pytest.Item] = []
"""The test that is run now, from before its fixtures are made."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before all others those of `FIRST`, in that order."""

    def place(item: pytest.Item) -> int:
        found = (number for number, name in enumerate(FIRST) if item.nodeid.startswith(f"tests/{name}"))
        return next(found, len(FIRST))

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if not _running or _running[0].path != item.path:
        # What is imported and collected by now stays to the end. To look through it costs a quarter of a second, and
        # a training run does so each time; so from here on the garbage collector passes it over.
        gc.collect()
        gc.freeze()
    _running[:] = [item]
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def float32_unless_marked() -> Iterator[None]:
    """A test that would load a model in half precision, which commands do by default, has to say so.

    In half precision two tokens are often equally likely, and which of them is taken hangs on what is computed in the
    same step and on the processor's instructions: texts of two runs may differ though nothing is wrong.
    """
    loading = ModelOptions.loading

    def checked(options: ModelOptions) -> dict[str, Any]:
        if options.dtype != "float32" and _running[0].get_closest_marker("half_precision") is None:
            raise AssertionError(
                f"this test loads a model in {options.dtype}; give --dtype float32 (tests/exact.py), or mark it "
                "half_precision if it compares no texts that hang on rounding"
            )
        return loading(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelOptions, "loading", checked)
        yield


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile compiles, also in programs that the test starts."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with torch._dynamo.config.patch(disable=False):
        yield
