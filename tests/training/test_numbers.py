"""Which branch numbers an adapter is trained on, what it says of them, and how it is judged by number."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from parallelmind import Engine, Request, SamplingParams, load_model_with_lora
from parallelmind.errors import SettingsError
from parallelmind.models.sidecar import read_sidecar
from parallelmind.settings.model import DEFAULT_RANGE
from parallelmind.training.evaluation import number_groups
from tests.training.runs import options, train, write_records


def trained_range(path: Path) -> int | None:
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.rope is not None
    return sidecar.rope.branch_range


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, 3),  # of the largest row, which has 3 branches
        ({"branches_per_sample": 8}, 3),
        ({"branches_per_sample": 2}, 2),
        ({"use_streaming": True, "branches_per_sample": 8}, 8),  # not known before the end
        ({"visibility": "columnar"}, DEFAULT_RANGE),
        ({"branch_range": 20}, 20),
        ({"branch_range": 0}, None),
    ],
)
def test_the_sidecar_says_which_numbers_were_trained(
    flags: dict[str, Any], expected: int | None, model: Path, data: Path, tmp_path: Path
) -> None:
    written = train(options(model, data, tmp_path / "out", max_steps=1, **flags)).written
    assert trained_range(written) == expected
    assert trained_range(written.with_suffix("")) == expected


def test_training_on_keeps_the_numbers_that_are_known(model: Path, data: Path, tmp_path: Path) -> None:
    first = train(options(model, data, tmp_path / "first", max_steps=1, branch_range=20)).written
    second = train(options(model, data, tmp_path / "second", max_steps=1, load_lora=str(first))).written
    assert trained_range(second) == 20
    third = train(options(model, data, tmp_path / "third", max_steps=1, load_lora=str(first), branch_range=40)).written
    assert trained_range(third) == 40


def test_inference_takes_the_range_from_the_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    written = train(options(model, data, tmp_path / "out", max_steps=3, learning_rate=0.05)).written
    engine = Engine.from_pretrained(str(model), lora_path=str(written), dtype="float32", device="cpu")
    assert engine.branch_range_of() == 3
    sampling = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True)
    [result] = engine.generate([Request(main="mmm1", branches=["q0?"] * 7)], sampling)
    answers = [answer.token_ids for answer in result.branches]
    assert answers[:3] == answers[3:6]
    assert answers[0] == answers[6]
    with pytest.raises(SettingsError, match=r"--branch_range 5 given, 3 stored"):
        load_model_with_lora(str(model), str(written), branch_range=5)


def test_an_adapter_that_does_not_say_its_range_is_told_by_the_flag(model: Path, data: Path, tmp_path: Path) -> None:
    written = train(options(model, data, tmp_path / "out", max_steps=1, branch_range=0)).written
    assert load_model_with_lora(str(model), str(written)).settings.branch_range is None
    assert load_model_with_lora(str(model), str(written), branch_range=5).settings.branch_range == 5


def test_a_range_below_the_largest_row_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--branch_range 2 is below the most branches of a row, 3"):
        options(model, data, tmp_path, branch_range=2)


def test_training_says_that_no_branch_meets_another(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_records(tmp_path / "data.jsonl", branches=1)
    with caplog.at_level(logging.INFO, "parallelmind"):
        written = train(options(model, data, tmp_path / "isolated", max_steps=1)).written
        assert "every row has one branch" not in caplog.text
        assert trained_range(written) == 1
        train(options(model, data, tmp_path / "columnar", max_steps=1, visibility="columnar"))
    assert "every row has one branch" in caplog.text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "low"),
        ({"visibility": "columnar"}, "interleaved"),
        ({"visibility": "columnar", "rope_2d_pairs": "low"}, "low"),
        ({"visibility": "strict"}, "low"),
    ],
)
def test_branches_that_see_one_another_are_trained_with_interleaved_pairs(
    flags: dict[str, Any], expected: str, model: Path, data: Path, tmp_path: Path
) -> None:
    written = train(options(model, data, tmp_path / "out", max_steps=1, **flags)).written
    found = read_sidecar(written)
    assert found is not None
    assert found.rope is not None
    assert found.rope.pairs == expected
    # An adapter that does not say so was trained with what was the default then.
    written.with_suffix(".parallelmind.json").unlink()
    again = train(options(model, data, tmp_path / "again", max_steps=1, load_lora=str(written), **flags)).written
    continued = read_sidecar(again)
    assert continued is not None
    assert continued.rope is not None
    assert continued.rope.pairs == flags.get("rope_2d_pairs", "low")


def test_groups_of_numbers() -> None:
    assert number_groups(None) == number_groups(1) == []
    assert number_groups(3) == [(1, 1), (2, 2), (3, 3)]
    assert number_groups(20) == [(1, 3), (4, 6), (7, 9), (10, 12), (13, 15), (16, 18), (19, 20)]
    assert number_groups(64)[-1] == (57, 64)
    assert len(number_groups(64)) == 8


def test_answers_are_judged_by_branch_number(model: Path, tmp_path: Path) -> None:
    """The questions go round all trained numbers, though every record has the same few."""
    rows = [
        {"main": f"m{n}", "branches": [{"prompt": "q?", "completion": "ab"}, {"prompt": "r?", "completion": "c"}]}
        for n in range(12)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = options(model, data, tmp_path / "out", eval_data_path=data, branch_range=16, max_steps=60)
    found = train(chosen).evaluation
    shares = {name: value for name, value in found.items() if name.startswith("eval_exact_")}
    assert list(shares) == [f"eval_exact_{first}-{first + 1}" for first in range(1, 17, 2)]
    assert sum(shares.values()) / len(shares) == pytest.approx(found["eval_exact"])
    assert found["eval_exact"] > 0.8
    page = next((tmp_path / "out").rglob("*.html")).read_text(encoding="utf-8")
    assert "Exact answers by branch number" in page
    assert "15–16" in page
