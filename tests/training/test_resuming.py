"""Runs that are cut and go on: resumed equals uninterrupted, and nothing finished or saved is lost."""

from __future__ import annotations

import json
import random
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind.cli.train_progress import LogTrainProgress
from parallelmind.errors import TrainingError
from parallelmind.training.files import RunFiles
from parallelmind.training.run import run_training
from tests.disks import room_for
from tests.training.runs import (
    Killed,
    RecordedProgress,
    assert_equal,
    options,
    raises_killed,
    train,
    weights,
)


@pytest.mark.parametrize(
    "more",
    [
        {"batch_size": 3, "use_streaming": True},
        {"batch_size": 16, "max_tokens_per_batch": 40},
        pytest.param({"batch_size": 3}, marks=pytest.mark.slow),
        pytest.param({"batch_size": 16, "max_tokens_per_batch": 40, "use_streaming": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted(more: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    """Killed at a random step, with dropout, accumulation and a schedule; bit for bit."""
    workers = 2 if "max_tokens_per_batch" in more and "use_streaming" not in more else 0
    common: dict[str, Any] = {
        "lora_dropout": 0.2,
        "accumulation_steps": 2,
        "epochs": 3,
        "save_interval": 2,
        "shuffle_buffer": 7,
        "hf": {"warmup_steps": 3, "weight_decay": 0.1, "dataloader_num_workers": workers},
    } | more
    expected = train(options(model, data, tmp_path / "whole", **common))
    kill_at = random.randrange(3, expected.steps)

    def kill(step: int) -> None:
        if step == kill_at:
            raise Killed

    with raises_killed():
        train(options(model, data, tmp_path / "cut", **common), RecordedProgress(kill))
    torch.manual_seed(random.randrange(1000))
    progress = RecordedProgress()
    actual = train(options(model, data, tmp_path / "cut", **common), progress)
    assert actual.resumed_from == (kill_at - 1) // 2 * 2, kill_at
    assert actual.steps == expected.steps
    assert_equal(weights(actual.written), weights(expected.written))
    counted = dict(expected.data_counts)
    assert actual.data_counts == counted
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/logs/hf_parallel_lora/metrics.jsonl").open()]
    assert steps == list(range(1, expected.steps + 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_same_command_continues(
    number: signal.Signals, model: Path, data: Path, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: signal.default_int_handler(signal.SIGINT, None))
    try:
        expected = train(options(model, data, tmp_path / "whole", lora_dropout=0.1))

        def interrupt(step: int) -> None:
            if step == 2:
                signal.raise_signal(number)

        with pytest.raises(KeyboardInterrupt):
            train(options(model, data, tmp_path / "cut", lora_dropout=0.1), RecordedProgress(interrupt))
        assert not (tmp_path / "cut/lora/hf_parallel_lora_final.pth").exists()
        actual = train(options(model, data, tmp_path / "cut", lora_dropout=0.1))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert 2 <= actual.resumed_from <= 3
    assert_equal(weights(actual.written), weights(expected.written))


def test_a_finished_run_is_not_trained_again(model: Path, data: Path, tmp_path: Path) -> None:
    for streaming in (False, True):
        chosen = options(model, data, tmp_path / str(streaming), use_streaming=streaming)
        first = train(chosen)
        written = weights(first.written)
        first.written.unlink()
        again = train(chosen)
        assert (again.steps, again.resumed_from) == (first.steps, first.steps)
        assert (first.trained, again.trained) == (True, False)
        assert_equal(weights(again.written), written)


def test_a_finished_run_is_evaluated_again_and_shown(
    model: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = options(model, data, tmp_path, eval_ratio=0.25, log_interval=100, max_steps=2, dtype="bfloat16")
    first = train(chosen)
    with caplog.at_level("INFO", logger="parallelmind"):
        again = run_training(chosen, progress=LogTrainProgress())
    assert again.evaluation == first.evaluation
    assert "step 2/2 held-out loss" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_more_passes_than_a_finished_run_had(streaming: bool, model: Path, data: Path, tmp_path: Path) -> None:
    """The same weights as of one long run; its schedule must not depend on how long it is."""
    common: dict[str, Any] = {"use_streaming": streaming, "hf": {"lr_scheduler_type": "constant"}}
    expected = train(options(model, data, tmp_path / "whole", epochs=2, **common))
    first = train(options(model, data, tmp_path / "parts", **common))
    checkpoint = RunFiles(tmp_path / "parts", "hf_parallel_lora").last_checkpoint()
    more = options(model, data, tmp_path / "parts", epochs=2, resume_from_checkpoint=checkpoint, **common)
    actual = train(more)
    assert (actual.resumed_from, actual.steps) == (first.steps, expected.steps)
    assert expected.steps > first.steps
    assert_equal(weights(actual.written), weights(expected.written))


def test_a_checkpoint_that_is_not_whole_is_not_continued(model: Path, data: Path, tmp_path: Path) -> None:
    train(options(model, data, tmp_path, save_interval=2, max_steps=4))
    files = RunFiles(tmp_path, "hf_parallel_lora")
    last = files.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-4"
    (last / "trainer_state.json").write_text('{"global_step": 4,')
    again = train(options(model, data, tmp_path, save_interval=2, max_steps=4))
    assert again.resumed_from == 2


def test_a_full_disk_keeps_the_former_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    expected = train(options(model, data, tmp_path / "whole", save_interval=2))
    with ExitStack() as until_then:

        def fill_the_disk(step: int) -> None:
            if step == 3:  # the weights of the next checkpoint fit, and the optimizer's state does not
                until_then.enter_context(room_for(60_000))

        with pytest.raises(TrainingError, match=r"checkpoint-4: the checkpoint could not be written .*make room"):
            train(options(model, data, tmp_path / "full", save_interval=2), RecordedProgress(fill_the_disk))
    last = RunFiles(tmp_path / "full", "hf_parallel_lora").last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-2"
    assert not (last.parent / "checkpoint-4").exists()
    actual = train(options(model, data, tmp_path / "full", save_interval=2))
    assert actual.resumed_from == 2
    assert_equal(weights(actual.written), weights(expected.written))
