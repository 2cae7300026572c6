"""The limit on time holds for code that does not want to hear of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.time_limit import time_limit

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no such signals here")


def go_on_after_errors() -> None:
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


class Slow:
    def __del__(self) -> None:
        time.sleep(60)


def destroy() -> None:
    one = Slow()
    del one  # what is raised in there leads nowhere
    time.sleep(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", [go_on_after_errors, destroy])
def test_code_that_goes_on_is_stopped(work: Callable[[], None]) -> None:
    limited = time_limit(0.1, "reading it")(work)
    with pytest.raises(DataError, match=r"^reading it took more than 0\.1 seconds; raise --timeout\.$"):
        limited()
    assert signal.getitimer(signal.ITIMER_REAL) == signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_code_that_is_not_python_is_killed() -> None:
    code = """
import itertools
from parallelmind.retrieval.corpus import time_limit
time_limit._KILL_SECONDS = 0.2
with time_limit.time_limit(0.1, "reading it"):
    sum(itertools.repeat(1))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == -signal.SIGPROF
