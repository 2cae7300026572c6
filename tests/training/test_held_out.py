"""A share of the data that is held out."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

from parallelmind.data.sources import ChainedSource, JsonlSource
from parallelmind.training.data import _split
from tests.training.runs import options, train, write_records


def test_a_share_of_each_of_several_files_is_held_out(model: Path, tmp_path: Path) -> None:
    files = (write_records(tmp_path / "a", 20), write_records(tmp_path / "b", 20))
    chosen = options(model, files[0], tmp_path / "out", data_path=files, data_weights=(0.5, 0.5), eval_ratio=0.3)
    report = train(chosen)
    assert 20 < report.data_counts["records"] < 36
    assert {"eval_loss", "eval_exact"} <= report.evaluation.keys()


def test_each_record_is_on_one_side(tmp_path: Path) -> None:
    """The same of it in processes that get a copy, and another one of each file."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(json.dumps({"text": f"{name} {row}"}) + "\n" for row in range(200)))
    sides = _split(ChainedSource([JsonlSource(tmp_path / "a"), JsonlSource(tmp_path / "b")]), 0.25, 42)
    kept, held_out = ([row.fields["text"] for row in pickle.loads(pickle.dumps(side)).read()] for side in sides)
    assert len(kept) + len(held_out) == len({*kept, *held_out}) == 400
    assert all(35 < count < 65 for count in Counter(text[0] for text in held_out).values())
    assert {text[2:] for text in held_out if text[0] == "a"} != {text[2:] for text in held_out if text[0] == "b"}
    for side, texts in zip(sides, (kept, held_out), strict=True):
        assert [row.fields["text"] for part in side.parts() for row in part.read()] == texts
