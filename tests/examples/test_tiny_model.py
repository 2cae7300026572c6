"""The recipe of the bundled model: what it prepares is what was shipped, and the trainer takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.tiny_model import prepare
from parallelmind.cli.main import main
from parallelmind.models.identity import bundled_model_path
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.sidecar import read_sidecar
from tests.programs import command_line

STEPS, QUESTIONS, MORE_STEPS = 9, 24, 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    given = {"out_dir": folder, "steps": STEPS, "questions": QUESTIONS, "more_steps": MORE_STEPS}
    with command_line("prepare", *(f"--{name}={value}" for name, value in given.items())):
        prepare.main()
    return folder


def test_the_tokenizer_is_the_shipped_one(prepared: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shipped = json.loads((bundled_model_path() / name).read_text(encoding="utf-8"))
        assert json.loads((prepared / "tokenizer" / name).read_text(encoding="utf-8")) == shipped


def test_the_trainer_makes_a_model_of_the_shipped_shape(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step is the stories of as many questions, in their order, so there are as many steps as were prepared."""
    for name, steps in (("first", STEPS), ("tiny", MORE_STEPS)):
        schedule = json.dumps({"num_decay_steps": 1, "decay_type": "linear"})
        given = ["--warmup_steps", "1", "--lr_scheduler_kwargs", schedule, "--log_interval", "1", "--eval_samples", "2"]
        assert main(["train", "--task", "pretrain", "--config", str(prepared / f"{name}.yaml"), *given]) == 0
        assert f"step {steps}/{steps} loss" in capsys.readouterr().err
    model = prepared / "pretrain" / "tiny_final"
    made, shipped = (json.loads((path / "config.json").read_text()) for path in (model, bundled_model_path()))
    assert made == shipped
    assert read_sidecar(model) is None
    own = load_model_with_lora(str(model), device="cpu", dtype="float32").model
    bundled = load_model_with_lora("tiny", device="cpu", dtype="float32").model
    assert {name: value.shape for name, value in own.state_dict().items()} == {
        name: value.shape for name, value in bundled.state_dict().items()
    }


def test_steps_have_one_number_of_facts_and_simple_wordings_come_first(prepared: Path) -> None:
    rows = [json.loads(line) for line in (prepared / "first.jsonl").open(encoding="utf-8")]
    facts = [4 + (step * 5) % 9 for step in range(STEPS)]
    assert [len(row["branches"]) for row in rows] == [n for n in facts for _ in range(QUESTIONS // n)]
    bare = prepare.wordings_of_steps(STEPS).count(0)
    assert bare >= 3
    first = sum(QUESTIONS // n for n in facts[:bare])
    assert not any(branch["prompt"].endswith("?") for row in rows[:first] for branch in row["branches"])
    assert all(branch["prompt"].endswith(("?", ".")) for branch in rows[-1]["branches"])
