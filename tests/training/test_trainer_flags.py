"""Every field of TrainingArguments and every optimizer as a flag: it works, or an error names it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments
from transformers.training_args import OptimizerNames

from parallelmind.cli.main import main
from parallelmind.errors import SettingsError
from parallelmind.training.explaining import refuse_shards

FIELDS = [field for field in HfArgumentParser(TrainingArguments)._actions if field.nargs != 0]
NOT_WALKED = {"output_dir", "push_to_hub", "full_determinism", "debug"}
"""The first is ours, the second asks the Hub (test_publishing), the third would stay on for tests that follow, and our
--debug is another one."""
WRONG = ["-1", "x", '{"a": 1}', "{bad"]


def trained(model: Path, data: Path, out: Path, *flags: str, capsys: Any) -> str:
    """Train two steps; the error, "" if there was none. Anything but an error of ours is raised."""
    plain = ["--device", "cpu", "--dtype", "float32", "--branches_per_sample", "3", "--batch_size", "6"]
    files = ["--base_model", str(model), "--data_path", str(data), "--out_dir", str(out)]
    try:
        code = main(["train", *files, *plain, "--max_steps", "2", "--overwrite", *flags])
    except SystemExit as error:  # of argparse
        code = int(error.code or 0)
    said = capsys.readouterr().err
    return "" if code == 0 else next(line for line in reversed(said.splitlines()) if "error" in line)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim", "galore_adamw"], "--optim galore_adamw cannot be used: "),
        (["--optim", "adamw_torch_xla"], "--optim adamw_torch_xla cannot be used: "),
        (["--optim", "adamw_torch_xla", "--loraplus_lr_ratio", "4"], "--optim adamw_torch_xla cannot be used: "),
        (["--optim_args", "x"], r"--optim adamw_torch\w* with --optim_args x cannot be used"),
        (["--adam_beta1", "2"], r"--optim adamw_torch\w* with --adam_beta1 2.0 .* cannot be used: Invalid beta"),
        (["--lr_scheduler_kwargs", "x"], "--lr_scheduler_kwargs is 'x'; it must be a JSON object"),
        (["--lr_scheduler_kwargs", "{bad"], "--lr_scheduler_kwargs is '{bad'; it must be a JSON object"),
        (["--lr_scheduler_kwargs", '{"a": 1}'], "--lr_scheduler_type linear cannot be used .* It takes none"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr .* min_lr_rate, num"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "--lr_scheduler_type reduce_lr_on_plateau: .* eval strategy"),
        (["--accelerator_config", "x"], "--accelerator_config x: transformers refuses: .*No such file"),
        (["--neftune_noise_alpha", "-1"], "--neftune_noise_alpha is -1.0; it must be 0 or more"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers is -1; it must be 0 or more"),
        (["--torch_compile_mode", "x"], "--torch_compile_mode x cannot be used here: it is default or"),
        (["--report_to", "x"], "--report_to x: not known; it must be none, all, or of .*tensorboard"),
        (["--fsdp", "full_shard"], "--fsdp cannot be set here: it parts the weights"),
        (["--eval_on_start", "true"], "--eval_on_start goes by evaluations; give --eval_data_path or --eval_ratio"),
        (["--load_best_model_at_end", "true"], "--load_best_model_at_end goes by evaluations"),
        (["--warmup_steps", "-1", "--weight_decay", "0"], "--warmup_steps -1.0: transformers refuses: "),
    ],
)
def test_the_flag_is_named(
    flags: list[str], message: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, trained(model, data, tmp_path, *flags, capsys=capsys))


def test_a_schedule_is_given_as_json(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}']
    assert trained(model, data, tmp_path, *flags, capsys=capsys) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimizer(
    name: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = trained(model, data, tmp_path, "--optim", name, capsys=capsys)
    assert not error or f"--optim {name}" in error


@pytest.mark.slow
@pytest.mark.parametrize("field", [field for field in FIELDS if field.dest not in NOT_WALKED], ids=lambda one: one.dest)
def test_every_field(
    field: argparse.Action, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = field.option_strings[0]
    for value in [*map(str, field.choices or ()), "1", "0.5", "true", *WRONG]:
        error = trained(model, data, tmp_path, flag, value, capsys=capsys)
        named = [flag, *(f"--{other}" for other in ("epochs", "grad_clip", "log_interval", "save_interval"))]
        assert not error or any(name in error for name in (*named, "--eval_interval", "accumulation_steps")), error


@pytest.mark.parametrize(
    ("fsdp", "environment", "stage", "message"),
    [
        ("full_shard", "", None, "FSDP .* parts the weights"),
        ("", "true", None, "FSDP .*accelerate's configuration.* parts the weights"),
        ("", "", 3, "stage 3 of DeepSpeed .* parts the weights .* stage 2 of DeepSpeed parts gradients"),
        ("", "", 2, None),
        ("", "", None, None),
    ],
)
def test_whole_weights_are_needed(
    fsdp: str, environment: str, stage: int | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", environment)
    deepspeed = None if stage is None else SimpleNamespace(zero_stage=stage)
    trainer = SimpleNamespace(args=SimpleNamespace(fsdp=fsdp, deepspeed_plugin=deepspeed))
    if message is None:
        refuse_shards(trainer)
        return
    with pytest.raises(SettingsError, match=message):
        refuse_shards(trainer)
