"""The training demo: its records, and that what it measures is what training left on disk."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from random import Random

import pytest
import torch

from parallelmind.cli.main import main
from parallelmind.demos.stories import HEADINGS, KINDS, PEOPLE, VALUES, private_facts, recall, write_records
from parallelmind.demos.train import COOPERATION, RECALL, measure, prepare

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny_model"


def records(make, count=60):
    rng = Random(0)
    return [make(rng) for _ in range(count)]


def test_main_tells_every_fact_that_is_recalled():
    for record in records(recall):
        assert len(record["branches"]) == RECALL.branches
        completions = [branch["completion"].strip() for branch in record["branches"]]
        assert len(set(completions)) == len(completions)
        assert all(value in record["main"] for value in completions)


def test_only_another_branch_states_the_private_fact_that_is_asked_for():
    for record in records(private_facts):
        branches = record["branches"]
        assert len(branches) == COOPERATION.branches
        for place, branch in enumerate(branches):
            value = branch["completion"].strip()
            stated = [other for other, text in enumerate(branches) if re.search(rf"{value}[^a-z]", text["prompt"])]
            assert value not in record["main"]
            assert len(stated) == 1
            assert stated != [place]
            people = [name for names in PEOPLE.values() for name in names if name in branch["prompt"]]
            asked = branch["prompt"].rstrip("?。").split("." if "." in branch["prompt"] else "。")[-1]
            assert any(name in asked and name in branches[stated[0]]["prompt"] for name in people)


def test_the_words_are_those_the_bundled_model_was_trained_on():
    """A copy in part of examples/tiny_model, which an installed package does not have."""
    words = (TINY_MODEL / "words.py").read_text(encoding="utf-8")
    for language in KINDS:
        wordings = (TINY_MODEL / f"wordings_{language}.txt").read_text(encoding="utf-8")
        told_and_asked = [text for kind in KINDS[language].values() for texts in kind for text in texts]
        assert [text for text in told_and_asked if text not in wordings] == []
        used = [*PEOPLE[language], *(value for values in VALUES[language].values() for value in values)]
        assert [word for word in used if word not in words] == []
        assert HEADINGS[language] in (TINY_MODEL / "data.py").read_text(encoding="utf-8")


def test_records_are_the_same_each_time_and_held_out_ones_are_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_records(tmp_path / name, recall, 30, seed)
    a, b, c = ((tmp_path / name).read_text(encoding="utf-8").splitlines() for name in "abc")
    assert a == b
    assert not set(a) & set(c)


@pytest.mark.slow
def test_demo_train(tmp_path, capsys):
    """The whole demo; it exits with 0 only if both tasks came out as they should."""
    assert main(["demo-train", "--out_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "after 200 steps of LoRA" in shown
    assert len(list(tmp_path.glob("logs/*/report.html"))) == 3


def test_a_short_demo_trains_measures_and_says_that_it_is_not_enough(tmp_path, capsys):
    out = tmp_path / "a demo"
    assert main(["demo-train", "--out_dir", str(out), "--max_steps", "2", "--records", "30"]) == 1
    shown = capsys.readouterr().out
    assert "Not as it should be" in shown
    assert shown.count(" of 24 (") == 3  # 3 records of 8 questions: without 2D RoPE, untuned, trained
    assert shown.count(" of 12 (") == 3
    reports = sorted(str(path.relative_to(out)) for path in out.glob("logs/*/report.html"))
    assert reports == [f"logs/{name}/report.html" for name in
                       ("cooperation_columnar", "cooperation_isolated", "recall_isolated")]  # fmt: skip
    assert all(path in shown.replace("\n", "") for path in reports)
    sidecar = json.loads((out / "lora" / "cooperation_columnar_final.parallelmind.json").read_text())
    assert sidecar["rope"]["visibility"] == "columnar"
    # The command that it shows trains the same.
    [command] = [line for line in shown.splitlines() if "--lora_name cooperation_columnar" in line]
    assert main([*shlex.split(command.removesuffix(" …"))[1:], "--out_dir", str(tmp_path / "again")]) == 0
    first, again = (result(folder, "cooperation_columnar") for folder in (out, tmp_path / "again"))
    assert first == again


def result(folder, name):
    """The settings of a training run and the weights that it wrote."""
    weights = torch.load(folder / "lora" / f"{name}_final.pth")
    assert any(value.any() for name, value in weights.items() if "lora.B" in name)
    settings = json.loads((folder / "checkpoints" / name / "run.json").read_text())
    schedule = settings["lr_scheduler_kwargs"]  # from a flag it is the text, which transformers reads
    settings["lr_scheduler_kwargs"] = json.loads(schedule) if isinstance(schedule, str) else schedule
    return settings, {name: value.tolist() for name, value in weights.items()}


def test_no_records_are_refused(tmp_path, capsys):
    assert main(["demo-train", "--out_dir", str(tmp_path), "--records", "0"]) == 1
    assert "--records is 0; it must be 1 or more" in capsys.readouterr().err


def test_measuring_counts_exact_answers_only(tmp_path):
    _, held_out = prepare(RECALL, tmp_path, records=40)
    measured = measure(held_out, patch_rope=False)
    assert measured.asked == 32
    assert measured.right >= 28  # the bundled model knows how to recall
    wrong = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
    for record in wrong:
        for branch in record["branches"]:
            branch["completion"] += "!"
    held_out.write_text("".join(json.dumps(record) + "\n" for record in wrong), encoding="utf-8")
    assert measure(held_out, patch_rope=False).right == 0
