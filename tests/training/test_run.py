"""Whole runs: what they write, the kinds of adapter, the devices, and that accumulation changes nothing."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parallelmind.errors import AdapterError, DataError, SettingsError, TrainingError
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import read_sidecar
from parallelmind.training.files import RunFiles
from parallelmind.training.model import training_device
from parallelmind.training.trainer import PackedTrainer
from tests.machines import machine_with_gpus
from tests.training.runs import (
    Killed,
    RecordedProgress,
    assert_equal,
    options,
    raises_killed,
    train,
    weights,
)


def test_writes_adapters_checkpoints_and_log_under_the_documented_names(
    model: Path, data: Path, tmp_path: Path
) -> None:
    progress = RecordedProgress()
    report = train(options(model, data, tmp_path, save_interval=5, lora_name="mine", eval_ratio=0.25), progress)
    lora = tmp_path / "lora"
    assert sorted(path.name for path in lora.iterdir()) == sorted(
        f"mine_{stem}{suffix}"
        for stem in ("step5", "step10", "final")
        for suffix in ("", ".pth", ".parallelmind.json")
        if stem != "step10" or report.steps >= 10
    )
    assert report.written == lora / "mine_final.pth"
    state = weights(report.written)
    assert all(name.endswith((".lora.A.weight", ".lora.B.weight")) for name in state)
    sidecar = read_sidecar(report.written)
    assert sidecar is not None
    assert sidecar == read_sidecar(lora / "mine_final")
    assert (sidecar.rank, sidecar.base_model) == (8, str(model))
    assert sidecar.rope is not None
    assert sidecar.rope.branch_stride == 128
    checkpoint = RunFiles(tmp_path, "mine").last_checkpoint()
    assert checkpoint is not None
    assert not (checkpoint / "model.safetensors").exists()
    assert (checkpoint / "trained.safetensors").stat().st_size < 4 * sum(v.numel() for v in state.values()) + 10_000
    log = [json.loads(line) for line in (tmp_path / "logs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert log == progress.entries
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, report.steps + 1))
    assert {"loss", "learning_rate", "tokens_per_second", "padded_tokens_per_second"} <= log[0].keys()
    assert "eval_exact" in log[-1]
    assert report.data_counts["records"] < 24
    assert report.data_counts["branches"] == 3 * report.data_counts["records"]


def test_the_adapter_moves_and_the_base_does_not(model: Path, data: Path, tmp_path: Path) -> None:
    before = load_model_with_lora(str(model), device="cpu", dtype="float32").model.state_dict()
    losses = RecordedProgress()
    report = train(options(model, data, tmp_path, epochs=4), losses)
    loaded = load_model_with_lora(str(model), str(report.written), device="cpu", dtype="float32")
    after = {name.replace(".base_layer", ""): value for name, value in loaded.model.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert all(layer.lora.B.weight.abs().max() > 0 for layer in lora_layers(loaded.model).values())
    assert losses.entries[-1]["loss"] < losses.entries[0]["loss"] * 0.7


@pytest.mark.parametrize(
    ("large", "small"),
    [
        pytest.param((8, 1), (2, 4), marks=pytest.mark.slow),
        ((8, 1), (1, 8)),
        ((5, 1), (1, 5)),  # steps that end within a row of 3
        ((2, 1), (1, 2)),  # steps that are smaller than one
        ((12, 2), (2, 12)),
    ],
)
def test_a_smaller_batch_accumulated_more_often_is_the_same_run(
    large: tuple[int, int], small: tuple[int, int], model: Path, data: Path, tmp_path: Path
) -> None:
    """Rows are cut where a batch is smaller; the loss is the mean over the tokens of a step, main's counted once."""
    # Plain SGD without clipping, as Adam does not care for the scale of a gradient.
    common = {"max_steps": 5, "hf": {"optim": "sgd"}, "grad_clip": 0, "learning_rate": 0.05, "loss_on_main": True}
    written, losses = [], []
    for size, accumulation in (large, small):
        out, progress = tmp_path / f"{size}x{accumulation}", RecordedProgress()
        chosen = options(model, data, out, batch_size=size, accumulation_steps=accumulation, **common)
        written.append(weights(train(chosen, progress).written))
        losses.append([entry["loss"] for entry in progress.entries if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert_equal(written[1], written[0], tolerance=1e-4)


def test_a_row_whose_branches_see_one_another_is_a_batch(
    model: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches of 3 branches twice, though 1 was asked for six times: the steps have 6 branches either way."""
    common = {"max_steps": 4, "hf": {"optim": "sgd"}, "grad_clip": 0, "learning_rate": 0.05, "visibility": "columnar"}
    rows = train(options(model, data, tmp_path / "rows", batch_size=3, accumulation_steps=2, **common))
    with caplog.at_level("INFO", logger="parallelmind"):
        asked = train(options(model, data, tmp_path / "asked", batch_size=1, accumulation_steps=6, **common))
    assert "--batch_size 1 is smaller than a row of up to 3 branches, which see one another" in caplog.text
    assert "a batch is one row, 2 of them to a step of 6 branches in each process (6 were asked for)" in caplog.text
    assert_equal(weights(asked.written), weights(rows.written))


def test_reading_ahead_in_another_process_changes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    """And a run that read ahead continues from what was trained on, not from what was read."""
    common: dict[str, Any] = {"use_streaming": True, "shuffle_buffer": 7, "save_interval": 2}
    expected = train(options(model, data, tmp_path / "none", **common))

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    ahead = common | {"hf": {"dataloader_num_workers": 1}}
    whole = train(options(model, data, tmp_path / "ahead", **ahead))
    assert whole.data_counts == expected.data_counts
    with raises_killed():
        train(options(model, data, tmp_path / "one", **ahead), RecordedProgress(kill))
    actual = train(options(model, data, tmp_path / "one", **ahead))
    assert actual.resumed_from == 2
    assert_equal(weights(actual.written), weights(expected.written))
    assert actual.data_counts["records"] > 0


def test_the_best_adapter_is_kept_if_asked(model: Path, data: Path, tmp_path: Path) -> None:
    """Here the best is the highest loss, so that it is an early one."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    progress = RecordedProgress()
    chosen = options(model, data, tmp_path, hf=best, save_interval=2, epochs=3, learning_rate=0.3, eval_ratio=0.3)
    report = train(chosen, progress)
    losses = {entry["step"]: entry["eval_loss"] for entry in progress.entries if "eval_loss" in entry}
    assert len(losses) > 5
    step = max(sorted(losses)[:-1], key=lambda at: losses[at])
    assert report.evaluation["eval_loss"] == pytest.approx(losses[step])
    assert_equal(weights(report.written), weights(tmp_path / "lora" / f"hf_parallel_lora_step{step}.pth"))


def test_the_progress_is_stopped_however_a_run_ends(model: Path, data: Path, tmp_path: Path) -> None:
    def kill(step: int) -> None:
        raise Killed

    for on_step in (kill, lambda step: None):
        progress = RecordedProgress(on_step)
        with contextlib.suppress(Killed):
            train(options(model, data, tmp_path, max_steps=1, overwrite=True), progress)
        assert progress.stopped == 1


def test_a_loss_that_is_not_a_number_stops_with_the_records(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss became nan in step 2, on .*data\.jsonl line \d+"):
        train(options(model, data, tmp_path, save_interval=1, learning_rate=1e30))
    last = RunFiles(tmp_path, "hf_parallel_lora").last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-1"


def test_a_held_out_loss_that_is_not_a_number_is_not_laid_on_the_model(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"held-out loss became (nan|inf).* lower --learning_rate"):
        train(options(model, data, tmp_path, max_steps=3, learning_rate=1e30, eval_ratio=0.3, eval_interval=1))


def test_weights_that_are_no_numbers_are_not_saved(model: Path, data: Path, tmp_path: Path) -> None:
    """The step after it would fail, and its checkpoint could not be continued."""

    def spoil(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                next(value for value in seen[0].parameters() if value.requires_grad).fill_(torch.nan)

    seen: list[Any] = []
    make = PackedTrainer.__init__

    def noting(self: PackedTrainer, **parts: Any) -> None:
        seen.append(parts["model"])
        make(self, **parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedTrainer, "__init__", noting)
        with pytest.raises(TrainingError, match=r"With step 3 weights became infinite or no numbers. .*checkpoint-2\."):
            train(options(model, data, tmp_path, save_interval=1, max_steps=5), RecordedProgress(spoil))
    last = RunFiles(tmp_path, "hf_parallel_lora").last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-2"


@pytest.mark.parametrize("kind", ["", ".pth"])
def test_load_lora_continues_from_an_adapter(kind: str, model: Path, data: Path, tmp_path: Path) -> None:
    first = train(options(model, data, tmp_path / "first", stride=32, lora_rank=4, max_steps=3))
    path = first.written.with_suffix(kind)
    progress = RecordedProgress()
    again = train(
        options(model, data, tmp_path / "again", load_lora=str(path), max_steps=1, learning_rate=1e-9), progress
    )
    assert_equal(weights(again.written), weights(first.written), tolerance=1e-6)
    sidecar = read_sidecar(again.written)
    assert sidecar is not None
    assert sidecar.rope is not None
    assert (sidecar.rope.branch_stride, sidecar.rank) == (32, 4)
    for flags, message in (
        ({"stride": 64}, "--branch_stride 64 given, 32 stored"),
        ({"lora_rank": 16}, "its rank is 4, but rank 16"),
        ({"patch_rope": False}, "--no_patch_rope contradicts"),
        ({"use_dora": True}, "--use_dora contradicts --load_lora"),
    ):
        with pytest.raises((SettingsError, AdapterError), match=message):
            train(options(model, data, tmp_path / "never", load_lora=str(path), **flags))


@pytest.mark.parametrize(
    "flags", [{"use_rslora": True, "lora_alpha": 16}, {"use_dora": True}, {"loraplus_lr_ratio": 16}]
)
def test_kinds_of_lora(flags: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    report = train(options(model, data, tmp_path, max_steps=2, target_modules=("q_proj", "v_proj"), **flags))
    loaded = load_model_with_lora(str(model), str(report.written), device="cpu", dtype="float32")
    layers = lora_layers(loaded.model)
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "v_proj"}
    assert all(layer.lora.B.weight.abs().max() > 0 for layer in layers.values())
    folder = report.written.with_suffix("")
    assert (report.written == folder) == ("use_dora" in flags)
    assert folder.with_suffix(".pth").exists() == ("use_dora" not in flags)
    other = load_model_with_lora(str(model), str(folder), device="cpu", dtype="float32")
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(other.model(ids).logits, loaded.model(ids).logits)
    if "loraplus_lr_ratio" in flags:
        usual = weights(
            train(options(model, data, tmp_path / "usual", max_steps=2, target_modules=("q_proj", "v_proj"))).written
        )
        ratio = [
            float(value.abs().mean() / usual[name].abs().mean())
            for name, value in weights(report.written).items()
            if name.endswith("B.weight")
        ]
        assert min(ratio) > 5


def test_gradient_checkpointing_and_bfloat16(model: Path, data: Path, tmp_path: Path) -> None:
    plain = train(options(model, data, tmp_path / "plain", max_steps=3))
    again = train(options(model, data, tmp_path / "again", max_steps=3, hf={"gradient_checkpointing": True}))
    assert_equal(weights(again.written), weights(plain.written), tolerance=1e-5)
    mixed = train(options(model, data, tmp_path / "mixed", max_steps=3, dtype="bfloat16"))
    assert all(value.dtype == torch.float32 for value in weights(mixed.written).values())
    assert_equal(weights(mixed.written), weights(plain.written), tolerance=0.5)


def test_tensorboard_gets_what_the_log_gets(model: Path, data: Path, tmp_path: Path) -> None:
    progress = RecordedProgress()
    train(options(model, data, tmp_path, max_steps=3, eval_ratio=0.25, hf={"report_to": ["tensorboard"]}), progress)
    events = EventAccumulator(str(tmp_path / "logs" / "hf_parallel_lora"))
    events.Reload()
    losses = [entry["loss"] for entry in progress.entries if "loss" in entry]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert {"eval/loss", "eval/exact", "train/tokens_per_second", "train/learning_rate"} <= set(
        events.Tags()["scalars"]
    )


@pytest.mark.parametrize(
    ("given", "native", "launched", "message"),
    [
        ("cuda", True, None, None),
        ("cuda:0", True, "3", None),
        ("cuda:1", True, None, "--device cuda:1: Trainer takes the first GPU"),
        ("cuda", False, None, "--dtype bfloat16 is not supported by this GPU"),
    ],
)
def test_gpus(
    given: str, native: bool, launched: str | None, message: str | None, model: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is decided before a GPU is needed, on a machine without one; GPUs that emulate bfloat16 do not have it."""
    machine_with_gpus(monkeypatch, 4)
    monkeypatch.setattr("torch.cuda.device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    if launched is not None:
        monkeypatch.setenv("LOCAL_RANK", launched)
    chosen = options(model, data, tmp_path, device=given, dtype="bfloat16")
    if message is None:
        assert training_device(chosen) == ("cuda" if launched is None else f"cuda:{launched}", None)
        return
    with pytest.raises(SettingsError, match=message):
        training_device(chosen)


def test_bad_input(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)  # as if they were not installed
    bad = tmp_path / "bad.jsonl"
    alpaca = tmp_path / "alpaca.jsonl"
    alpaca.write_text('{"instruction": "i", "input": "", "output": "o"}\n')
    bad.write_text(data.read_text() + '{"main": "x", "branches": [{"prompt": "p", "completion": 3}]}\n')
    for flags, kind, message in (
        ({"data_path": tmp_path / "none.jsonl"}, SettingsError, "--data_path .*none.jsonl: no such file"),
        ({"base_model": str(tmp_path / "none")}, SettingsError, "--base_model .*none"),
        ({"dtype": "float16"}, SettingsError, "--dtype float16 cannot be trained in on a CPU"),
        ({"data_path": bad}, DataError, r'bad\.jsonl line 25: "branches"\[0\]\."completion" is a number'),
        ({"data_path": alpaca}, DataError, f"parallelmind convert --input {re.escape(str(alpaca))} --output"),
        ({"max_seq_len": 3, "strict": True}, DataError, r'line 1: "branches"\[0\] has \d+ tokens, cut to 3 .*--strict'),
        ({"max_total_tokens": 6}, DataError, "none of its 24 records leaves a supervised token"),
        ({"load_lora": str(tmp_path / "none.pth")}, AdapterError, "no such file"),
        ({"eval_ratio": 1e-9}, SettingsError, r"--eval_ratio 1e-09 holds out none of the records of .*data\.jsonl"),
        ({"eval_ratio": 1 - 1e-9}, SettingsError, "holds out all of the records"),
        ({"model_config": tmp_path / "c.json"}, SettingsError, "--model_config describes a new model, and"),
        ({"hf": {"report_to": "trackio"}}, SettingsError, r"pip install 'parallelmind\[trackio\]'"),
        ({"use_wandb": True}, SettingsError, r"^--use_wandb needs .* pip install 'parallelmind\[wandb\]', or leave"),
        ({"use_streaming": True, "hf": {"dataloader_num_workers": 2}}, SettingsError, "encode all of the data again"),
        ({"data_path": (data, alpaca), "data_weights": (1,)}, SettingsError, "--data_weights has 1 values and"),
        ({"data_weights": (1,), "use_streaming": True}, SettingsError, "--data_weights needs to know"),
        ({"max_tokens_per_batch": 64}, SettingsError, "--max_tokens_per_batch and --batch_size exclude"),
        (
            {"max_tokens_per_batch": 8, "batch_size": 16},
            DataError,
            r'line \d+: "branches"\[\d\] has \d+ tokens and does not fit beside a main of \d+ into '
            r"--max_tokens_per_batch 8; raise it to at least \d+",
        ),
        (
            {"max_tokens_per_batch": 16, "batch_size": 16, "visibility": "columnar"},
            DataError,
            r"line \d+: a row of \d branches, which see one another, has \d+ tokens",
        ),
        ({"hf": {"optim": "none_such"}}, SettingsError, "none_such"),
        ({"hf": {"bf16": True}}, SettingsError, "--bf16 cannot be set here: use --dtype"),
        ({"ddp": True}, SettingsError, "torchrun"),
        ({"resume_from_checkpoint": tmp_path}, SettingsError, "not a folder with a whole checkpoint"),
    ):
        with pytest.raises(kind, match=message):
            train(options(model, data, tmp_path / "out", **flags))
