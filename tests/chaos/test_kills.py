"""Every record ends as one output row, in input order, whatever is killed and however often."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.chaos.harness import Chaos, expected_rows, make_input, module


def check_after_kills(
    tmp_path: Path, *, seed: int, records: int, kills: int, command: list[str] | None = None
) -> Chaos:
    chance = random.Random(seed)
    data, out = make_input(tmp_path / "in.jsonl", records, chance), tmp_path / "out.jsonl"
    chaos = Chaos(command or module("tests.chaos.launcher", data, out, "{workers}"), out, chance)
    chaos.run_until_complete(kills)
    expected = expected_rows(data)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    # A record may be given up if both kills it got while it ran alone hit it; it is a failed row, never a lost one.
    given_up = [place for place, row in enumerate(rows) if "error" in row]
    assert [row["n"] for row in rows] == [row["n"] for row in expected]
    assert [row for row in rows if "error" not in row] == [
        row for place, row in enumerate(expected) if place not in given_up
    ]
    assert len(given_up) <= max(1, kills // 10)
    if given_up:
        Chaos(module("tests.chaos.launcher", data, out, "{workers}", "retry"), out, chance).run_until_complete(0)
        assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == expected
    return chaos


def test_a_few_kills(tmp_path: Path) -> None:
    chaos = check_after_kills(tmp_path, seed=1, records=2500, kills=7)
    assert chaos.kills["worker"] >= 1
    assert chaos.kills["launcher"] >= 1


@pytest.mark.slow
def test_sixty_kills(tmp_path: Path) -> None:
    chaos = check_after_kills(tmp_path, seed=2, records=30_000, kills=60)
    assert sum(chaos.kills.values()) >= 50
