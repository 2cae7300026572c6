"""What is known of the launcher: a token that the ranks of one run share, and their places."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from parallelmind.errors import SettingsError
from parallelmind.jobs.launch import local_place, run_token
from parallelmind.jobs.ranks import SINGLE, Rank

PRINT_TOKEN = """
from parallelmind.jobs.launch import run_token
from parallelmind.jobs.ranks import current_rank
print(run_token(current_rank()))
"""


def tokens(world_size: int, **variables: str) -> list[str]:
    """Of ranks that this process launches."""
    processes = []
    for rank in range(world_size):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world_size)} | variables
        command = [sys.executable, "-c", PRINT_TOKEN]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    try:
        return [process.communicate(timeout=120)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_a_process_alone_has_a_token_of_its_own() -> None:
    assert run_token(SINGLE, {}) != run_token(SINGLE, {})


def test_the_ranks_of_one_machine_share_a_token() -> None:
    first = tokens(2, LOCAL_WORLD_SIZE="2")
    assert first[0] == first[1] != ""
    restarted = tokens(1, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RESTART_COUNT="1")
    assert restarted[0] not in (first[0], "")


def test_the_ranks_of_several_machines_share_a_token() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = tokens(2, LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert found[0] == found[1] != ""


def test_ranks_without_a_launcher_are_told_what_to_use() -> None:
    with pytest.raises(
        SettingsError, match=r"WORLD_SIZE is 4, but MASTER_ADDR and MASTER_PORT are not set; .*torchrun"
    ):
        run_token(Rank(1, 4), {"LOCAL_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("rank", "environ", "place"),
    [
        (SINGLE, {}, (0, 1)),
        (Rank(3, 4), {}, (3, 4)),
        (Rank(5, 8), {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, (1, 4)),
    ],
)
def test_the_place_on_the_machine(rank: Rank, environ: dict[str, str], place: tuple[int, int]) -> None:
    assert local_place(rank, environ) == place
