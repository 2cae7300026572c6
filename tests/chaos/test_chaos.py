"""Every record ends as one output row, in input order, whatever is killed, stopped or edited, and however often."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import EVERYTHING, Chaos, expected_rows, make_input, module
from tests.jobs.launching import ray_cluster

LAUNCHER = module("tests.chaos.launcher")
TORCHRUN = module("torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "tests.chaos.launcher")


def check_after(tmp_path: Path, *, seed: int, records: int, actions: int, **given: Any) -> Chaos:
    chance = random.Random(seed)
    data, out = make_input(tmp_path / "in.jsonl", records, chance), tmp_path / "out.jsonl"
    chaos = Chaos(**{"command": LAUNCHER} | given, data=data, out=out, chance=chance)
    chaos.run_until_complete(actions)
    expected = expected_rows(data)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    # A record may be given up if both kills it got while it ran alone hit it; it is a failed row, never a lost one.
    given_up = [place for place, row in enumerate(rows) if "error" in row]
    assert [row["n"] for row in rows] == [row["n"] for row in expected]
    assert [row for row in rows if "error" not in row] == [
        row for place, row in enumerate(expected) if place not in given_up
    ]
    assert len(given_up) <= max(1, actions // 10)
    if given_up:
        Chaos(LAUNCHER, data, out, chance, options={"retry_failed": True}).run_until_complete(0)
        assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == expected
    assert not out.with_name("out_2.jsonl").exists()
    return chaos


def test_a_few_kills(tmp_path: Path) -> None:
    chaos = check_after(tmp_path, seed=1, records=2500, actions=7)
    assert chaos.done["worker"] >= 1
    assert chaos.done["launcher"] >= 1


def test_a_few_of_everything(tmp_path: Path) -> None:
    options = {"record_timeout": 1.0, "clock_jumps": True}
    chaos = check_after(tmp_path, seed=3, records=2500, actions=8, kinds=EVERYTHING, options=options)
    assert len(chaos.done) >= 3


@pytest.mark.slow
def test_sixty_kills(tmp_path: Path) -> None:
    chaos = check_after(tmp_path, seed=2, records=30_000, actions=60)
    assert sum(chaos.done.values()) >= 50


@pytest.mark.slow
def test_sixty_of_everything(tmp_path: Path) -> None:
    options = {"record_timeout": 1.0, "clock_jumps": True}
    chaos = check_after(tmp_path, seed=4, records=30_000, actions=60, kinds=EVERYTHING, options=options)
    assert sum(chaos.done.values()) >= 50


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    """Ranks are killed too, and torchrun itself."""
    options = {"record_timeout": 1.0, "clock_jumps": True}
    chaos = check_after(
        tmp_path, seed=5, records=6_000, actions=30, command=TORCHRUN, workers=(), options=options,
        kinds=(*EVERYTHING, "rank"), longest_pause=4.0,
    )  # fmt: skip
    assert chaos.done["rank"] >= 2
    assert chaos.done["launcher"] >= 2


@pytest.mark.slow
def test_on_a_ray_cluster_that_loses_nodes(tmp_path: Path) -> None:
    with ray_cluster() as cluster:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]

        def lose_node() -> None:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=2))

        options = {"launcher": "ray", "ray_address": cluster.address, "record_timeout": 5.0}
        chaos = check_after(
            tmp_path, seed=6, records=6_000, actions=12, options=options, workers=(2, 3), longest_pause=4.0,
            kinds=("node", "launcher", "edit", "pause launcher"), also={"node": lose_node},
        )  # fmt: skip
    assert chaos.done["node"] >= 2
