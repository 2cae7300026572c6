"""How the ranks of one run find each other, and nobody else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.errors import SettingsError
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import SINGLE, Rank, local_place
from parallelmind.jobs.run import run_job
from tests.jobs.tasks import Records, doubled, read_rows, write_input

RUN_TWICE = """
import sys
from pathlib import Path
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.run import run_job
from tests.jobs.tasks import Records
if __name__ == "__main__":
    data, *outs = map(Path, sys.argv[1:])
    for out in outs:
        run_job(Records(data, out), RunOptions(rank=current_rank()))
"""


def launch(folder: Path, world_size: int, *arguments: Path, **variables: str) -> list[int]:
    """The exit codes of ranks that this process launches."""
    script = folder / "rank.py"
    script.write_text(RUN_TWICE)
    processes = []
    for rank in range(world_size):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world_size)} | variables
        environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
        processes.append(subprocess.Popen([sys.executable, str(script), *map(str, arguments)], env=environment))
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("machines", [1, 2])
def test_the_ranks_find_each_other_for_one_job_after_the_other(tmp_path: Path, machines: int) -> None:
    """On one machine, and through the store on several; the other ranks need to see neither input nor output."""
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(200)))
    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {"LOCAL_WORLD_SIZE": "2"}
    if machines > 1:
        places = {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert launch(tmp_path, 2, data, *outs, **places) == [0, 0]
    assert [read_rows(out) for out in outs] == [doubled(200)] * 2


def test_ranks_without_a_launcher_are_told_what_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        SettingsError, match=r"WORLD_SIZE is 4, but MASTER_ADDR and MASTER_PORT are not set; .*torchrun"
    ):
        run_job(Records(tmp_path / "in", tmp_path / "out"), RunOptions(rank=Rank(1, 4)))


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
