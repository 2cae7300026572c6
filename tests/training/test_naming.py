"""Which run a command continues: the one whose effective settings are the same; another one gets another name."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from parallelmind.io.numbered_names import numbered
from parallelmind.models.loader import load_model_with_lora
from parallelmind.training.data import batching
from parallelmind.training.files import RunFiles
from parallelmind.training.naming import ChosenRun, choose_run, run_names
from parallelmind.training.options import TrainOptions
from parallelmind.training.resolving import rope_of_run
from parallelmind.training.settings import differences, effective_settings
from tests.training.runs import (
    Killed,
    RecordedProgress,
    assert_equal,
    options,
    raises_killed,
    train,
    weights,
    write_records,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_records(tmp_path / "data.jsonl")


def settings_of(chosen: TrainOptions, processes: int = 1) -> dict[str, Any]:
    rope = rope_of_run(chosen)
    layout = batching(chosen, rope.settings.visibility).layout(processes)
    return effective_settings(chosen, rope=rope, layout=layout)


def choice(chosen: TrainOptions) -> ChosenRun:
    return choose_run(chosen, settings_of(chosen))


def test_the_names_of_a_run(model: Path, data: Path, tmp_path: Path) -> None:
    assert list(itertools.islice(numbered("a"), 3)) == ["a", "a_2", "a_3"]
    for flags, expected in (
        ({}, ["hf_parallel_lora", "hf_parallel_lora_2"]),
        ({"lora_name": "mine"}, ["mine", "mine_2"]),
        ({"task": "lora"}, ["qwen2_parallel_lora_hf", "qwen2_parallel_lora_2_hf"]),
        ({"task": "lora", "lora_name": "mine"}, ["mine_hf", "mine_2_hf"]),
        ({"task": "lora", "base_model": "tiny"}, ["qwen2_parallel_lora_hf", "qwen2_parallel_lora_2_hf"]),
        ({"task": "lora", "base_model": str(tmp_path)}, ["hf_parallel_lora_hf", "hf_parallel_lora_2_hf"]),
        ({"task": "pretrain"}, ["pretrain", "pretrain_2"]),
    ):
        assert list(itertools.islice(run_names(options(model, data, tmp_path, **flags)), 2)) == expected


def test_a_default_that_is_spelled_out_is_the_default(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = options(model, data, tmp_path)
    before = settings_of(plain)
    monkeypatch.chdir(data.parent)
    link = tmp_path / "link.jsonl"
    link.symlink_to(data)
    for same in (
        {"rope_2d_ratio": 0.5, "rope_2d_mode": "split", "rope_2d_pairs": "low", "stride": 128},
        {"patch_rope": True, "visibility": "isolated", "loss_on_main": False},
        {"lora_rank": 8, "lora_alpha": 8.0, "target_modules": ("all-linear",), "lora_dropout": 0},
        {"target_modules": ()},
        {"data_path": Path("data.jsonl"), "hf_split": "other"},
        {"data_path": link},
        {"max_samples": 24},
        {"max_samples": 100},
        {"base_model": os.path.relpath(model), "tokenizer_path": str(model)},
        {"learning_rate": 1e-2, "grad_clip": 1, "shuffle_buffer": 3, "min_branches_per_sample": 2},
        {"batch_size": 3, "accumulation_steps": 2},
        {"batch_size": 1, "accumulation_steps": 6},
        {"device": None, "ddp": True, "save_interval": 3, "log_interval": 3, "overwrite": True, "strict": True},
        {"hf": {"weight_decay": 0, "warmup_steps": 0, "lr_scheduler_type": "linear", "save_total_limit": 7}},
    ):
        assert settings_of(options(model, data, tmp_path, **same)) == before, same
    small = {"batch_size": 3, "accumulation_steps": 1}
    assert settings_of(options(model, data, tmp_path, **small), processes=2) == before
    for rows in ({"batch_by_samples": True}, {"max_samples": 23}, {"visibility": "columnar", "stride": 64}):
        assert settings_of(options(model, data, tmp_path, **rows)) != before
    without: dict[str, Any] = {"patch_rope": False}
    assert settings_of(options(model, data, tmp_path, stride=64, rope_2d_ratio=0.25, **without)) == settings_of(
        options(model, data, tmp_path, **without)
    )
    dynamic: dict[str, Any] = {"max_branches_per_sample": 4}
    assert settings_of(options(model, data, tmp_path, branches_per_sample=9, **dynamic)) == settings_of(
        options(model, data, tmp_path, **dynamic)
    )
    steps: dict[str, Any] = {"max_steps": 3}
    assert settings_of(options(model, data, tmp_path, epochs=9, **steps)) == settings_of(
        options(model, data, tmp_path, **steps)
    )


def test_new_models_are_compared_by_what_they_are_made_from(model: Path, data: Path, tmp_path: Path) -> None:
    new: dict[str, Any] = {"task": "pretrain", "base_model": None, "tokenizer_path": str(model)}
    plain = settings_of(options(model, data, tmp_path, **new))
    same = options(model, data, tmp_path, model_overrides={"hidden_size": 256}, loss_on_main=True, **new)
    assert settings_of(same) == plain
    assert settings_of(options(model, data, tmp_path, model_overrides={"hidden_size": 64}, **new)) != plain


def test_settings_of_an_adapter_that_is_trained_on(model: Path, data: Path, tmp_path: Path) -> None:
    first = train(options(model, data, tmp_path / "first", stride=32, lora_rank=4, max_steps=1))
    on = {"load_lora": str(first.written)}
    plain = settings_of(options(model, data, tmp_path, **on))
    spelled = settings_of(options(model, data, tmp_path, stride=32, lora_rank=4, **on))
    assert spelled == plain
    assert (plain["stride"], plain["lora_rank"]) == (32, 4)


def test_differences_name_the_default_of_a_run_that_was_given_no_value(model: Path, data: Path, tmp_path: Path) -> None:
    plain = settings_of(options(model, data, tmp_path))
    given = settings_of(options(model, data, tmp_path, lora_alpha=3, target_modules=("q_proj",), hf={"optim": "sgd"}))
    default = next(item.default for item in dataclasses.fields(TrainingArguments) if item.name == "optim")
    assert differences(given, plain) == [
        "--lora_alpha 3.0 instead of the rank",
        f"--optim sgd instead of {getattr(default, 'value', default)}",
        "--target_modules q_proj instead of all linear layers",
    ]
    assert differences(plain, given)[1] == f"--optim {getattr(default, 'value', default)} instead of sgd"


def test_other_settings_get_another_name_and_equal_ones_continue(
    model: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each run is continued by its own command, whatever was started in between; the first one stays as it is."""
    out = tmp_path / "out"
    first = options(model, data, out, save_interval=1, max_steps=2)
    second = options(model, data, out, save_interval=1, max_steps=2, learning_rate=0.5, hf={"weight_decay": 0.1})
    third = options(model, data, out, save_interval=1, max_steps=2, lora_rank=2)
    written = train(first).written
    bytes_before = written.read_bytes()

    def kill(step: int) -> None:
        if step == 2:
            raise Killed

    with caplog.at_level("WARNING", logger="parallelmind"), raises_killed():
        train(second, RecordedProgress(kill))
    assert (
        "hf_parallel_lora is a run with other settings (--learning_rate 0.5 instead of 0.01, --weight_decay 0.1 "
        "instead of 0.0), which stays as it is: this one is called hf_parallel_lora_2 and ends in "
        f"{out / 'lora' / 'hf_parallel_lora_2_final.pth'}. --overwrite would begin hf_parallel_lora anew instead"
    ) in caplog.text
    other = train(third)
    assert (other.name, other.resumed_from) == ("hf_parallel_lora_3", 0)
    again = train(second)
    assert (again.name, again.resumed_from) == ("hf_parallel_lora_2", 1)
    assert again.written == out / "lora" / "hf_parallel_lora_2_final.pth"
    alone = train(options(model, data, tmp_path / "x", max_steps=2, learning_rate=0.5, hf={"weight_decay": 0.1}))
    assert_equal(weights(again.written), weights(alone.written))
    assert written.read_bytes() == bytes_before
    same = train(options(model, data, out, save_interval=1, max_steps=2, rope_2d_ratio=0.5, lora_rank=8))
    assert (same.name, same.resumed_from) == ("hf_parallel_lora", 2)
    anew = train(options(model, data, out, max_steps=2, learning_rate=0.5, overwrite=True))
    assert (anew.name, anew.resumed_from) == ("hf_parallel_lora", 0)


@pytest.mark.parametrize(
    "flag", ["data_path", "streamed", "eval_data_path", "load_lora", "base_model", "tokenizer_path", "hf_dataset"]
)
def test_an_edited_file_makes_another_run(flag: str, model: Path, data: Path, tmp_path: Path) -> None:
    """Also if its path, and the number of its bytes, are what they were; a file that is only read changes nothing."""
    own = Path(shutil.copytree(model, tmp_path / "model"))
    folder = tmp_path / "dataset" / "more"
    folder.mkdir(parents=True)
    file, flags = data, {"max_steps": 1}
    if flag == "streamed":
        flags |= {"use_streaming": True}
    elif flag == "eval_data_path":
        file = write_records(tmp_path / "held_out.jsonl", 3)
        flags |= {flag: file, "eval_samples": 1}
    elif flag == "load_lora":
        file = train(options(model, data, tmp_path / "first", max_steps=1)).written
        flags |= {flag: str(file)}
    elif flag == "hf_dataset":
        file = write_records(folder / "train.jsonl")
        flags |= {flag: str(folder.parent), "data_path": None}
    elif flag in ("base_model", "tokenizer_path"):
        file = own / "config.json"
        flags |= {flag: str(own)}
    chosen = options(model, data, tmp_path / "out", **flags)
    train(chosen)
    file.read_bytes()
    assert choice(chosen).files.name == "hf_parallel_lora"
    if flag == "load_lora":  # the same weights in another file are the same weights
        file.write_bytes(file.read_bytes())
        assert choice(chosen).files.name == "hf_parallel_lora"
        train(options(model, data, tmp_path / "first", max_steps=1, seed=1, overwrite=True))
    else:
        before = file.stat()
        text = file.read_text()
        file.write_text(text.replace("0", "1", 1))
        assert file.stat().st_size == before.st_size
        # Data is known by its bytes; weights are too large to be read for that.
        later = int(flag in ("base_model", "tokenizer_path"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    run = choice(chosen)
    assert (run.files.name, run.checkpoint) == ("hf_parallel_lora_2", None)
    assert f"(the content of --{'data_path' if flag == 'streamed' else flag})" in str(run.note)


def test_another_path_is_named_without_its_content(model: Path, data: Path, tmp_path: Path) -> None:
    train(options(model, data, tmp_path / "out", max_steps=1))
    other = write_records(tmp_path / "other.jsonl", 5)
    note = str(choice(options(model, other, tmp_path / "out", max_steps=1)).note)
    assert f"(--data_path {other} instead of {data})" in note


def test_a_name_is_taken_until_nothing_stands_under_it(model: Path, data: Path, tmp_path: Path) -> None:
    """A run whose settings are not known is another run; one that was begun and left no checkpoint begins again."""
    out = tmp_path / "out"
    chosen = options(model, data, out, max_steps=1)
    files = RunFiles(out, "hf_parallel_lora")
    train(chosen)
    shutil.rmtree(next(files.checkpoints.glob("checkpoint-*")))
    assert (choice(chosen).files, choice(chosen).checkpoint) == (files, None)
    files.settings.write_text('{"task":')
    assert "they are not known" in str(choice(chosen).note)
    shutil.rmtree(files.checkpoints)
    assert choice(chosen).files.name == "hf_parallel_lora_2"
    shutil.rmtree(out / "lora")
    assert choice(chosen) == ChosenRun(files=files)


def test_going_on_from_a_given_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    """It is the run that the checkpoint is of, if that has one of the names; else the first name."""
    out = tmp_path / "out"
    for rate in (0.01, 0.02):
        train(options(model, data, out, max_steps=1, learning_rate=rate))
    for name, expected in (("hf_parallel_lora", "hf_parallel_lora"), ("hf_parallel_lora_2", "hf_parallel_lora_2")):
        given = RunFiles(out, name).last_checkpoint()
        chosen = options(model, data, out, max_steps=9, resume_from_checkpoint=given)
        assert choice(chosen) == ChosenRun(files=RunFiles(out, expected), checkpoint=given)
    elsewhere = options(model, data, tmp_path / "else", max_steps=9, resume_from_checkpoint=given)
    assert choice(elsewhere).files == RunFiles(tmp_path / "else", "hf_parallel_lora")


def test_the_newest_adapter_of_the_task_lora(model: Path, data: Path, tmp_path: Path) -> None:
    """medical_lora_hf.pth is the last one saved, in mid-run and at the end; its command's second run has its own."""
    files = RunFiles(tmp_path, "medical_lora_hf")
    lora = tmp_path / "lora"
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def look(step: int) -> None:
        if files.newest_adapter.exists():
            seen[step] = weights(files.newest_adapter)

    chosen = {"task": "lora", "lora_name": "medical_lora", "save_interval": 2, "max_steps": 5}
    report = train(options(model, data, tmp_path, **chosen), RecordedProgress(look))
    steps = {step: weights(lora / f"medical_lora_hf_step{step}.pth") for step in (2, 4)}
    # A step is announced before its checkpoint is written.
    for step, saved in ((3, 2), (4, 2), (5, 4)):
        assert_equal(seen[step], steps[saved])
    assert seen.keys() == {3, 4, 5}
    assert files.newest_adapter == lora / "medical_lora_hf.pth"
    assert_equal(weights(files.newest_adapter), weights(report.written))
    assert any(not torch.equal(value, weights(report.written)[name]) for name, value in steps[4].items())
    loaded = load_model_with_lora(str(model), str(files.newest_adapter), device="cpu", dtype="float32")
    assert loaded.patch_rope
    assert json.loads((lora / "medical_lora_hf.parallelmind.json").read_text())["rank"] == 8
    other = train(options(model, data, tmp_path, **(chosen | {"learning_rate": 0.5})))
    assert other.written == lora / "medical_lora_2_hf_final.pth"
    assert (lora / "medical_lora_2_hf.pth").exists()
    assert_equal(weights(files.newest_adapter), weights(report.written))


def test_a_pretrained_model_that_is_written_again_is_the_same_model(model: Path, data: Path, tmp_path: Path) -> None:
    """A run on it goes on after the pretraining was started once more, which trains nothing."""
    new: dict[str, Any] = {"task": "pretrain", "base_model": None, "tokenizer_path": str(model), "max_steps": 1}
    pretraining = options(model, data, tmp_path, **new)
    made = train(pretraining).written
    chosen = options(made, data, tmp_path, max_steps=1)
    train(chosen)
    assert not train(pretraining).trained
    assert choice(chosen).files.name == "hf_parallel_lora"
    assert [path.name for path in made.parent.iterdir()] == [made.name]
