"""From the command to the engine: launchers, scripts, config files, and what training and inference agree on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind import Branch, Engine, Request, SamplingParams, optimize_for_cpu
from parallelmind.cli.main import main
from parallelmind.cli.train import _options
from parallelmind.columnar import find_rope_patch, pack_row
from parallelmind.data.collator import ParallelPretrainCollator, TrainingRow
from parallelmind.errors import SettingsError
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.sidecar import RopeSettings, Sidecar, read_sidecar, write_sidecar
from parallelmind.training.forward import PackedForward
from tests.engine.test_equalities import recorded_logits
from tests.programs import run_program
from tests.training.runs import options, save_model, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def command(model: Path, data: Path, out: Path, *more: object) -> list[str]:
    given = ["--base_model", model, "--data_path", data, "--out_dir", out, "--device", "cpu", "--dtype", "float32"]
    return [str(part) for part in (*given, "--branches_per_sample", 3, "--batch_size", 6, *more)]


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_the_engine_gives_the_logits_of_the_training_forward(family: str, data: Path, tmp_path: Path) -> None:
    """The adapter as it was saved, loaded without any flag; decoded with a cache against one packed forward."""
    base = save_model(tmp_path / family, family)
    report = train(
        options(base, data, tmp_path / "out", visibility="columnar", stride=32, rope_2d_mode="additive", max_steps=6)
    )
    loaded = load_model_with_lora(str(base), str(report.written.with_suffix("")), device="cpu", dtype="float32")
    assert loaded.settings.visibility == "columnar"
    assert loaded.settings.branch_stride == 32
    main_ids = loaded.tokenizer("mmm1")["input_ids"]
    prompts = [loaded.tokenizer(text)["input_ids"] for text in ("q0?", "q1?q1?", "q2?")]
    engine = Engine(loaded.model, loaded.tokenizer, visibility="columnar", branch_stride=32)
    sampling = SamplingParams(max_new_tokens=5, temperature=0, ignore_eos=True)
    with recorded_logits(engine) as recorded:
        branches = [Branch(prompt=prompt) for prompt in prompts]
        result = engine.generate([Request(main=main_ids, branches=branches)], sampling)[0]
    tokens = [prompt + branch.token_ids for prompt, branch in zip(prompts, result.branches, strict=True)]
    row = TrainingRow(pack_row(main_ids, tokens), torch.ones(len(main_ids) + sum(map(len, tokens)), dtype=torch.bool))
    forward = PackedForward(loaded.model, visibility="columnar", stride=32)
    batch = ParallelPretrainCollator(0, stride=32)([row])
    with torch.no_grad(), forward.installed(loaded.model):
        logits = forward._logits(loaded.model, batch, torch.ones_like(batch["input_ids"], dtype=torch.bool))
    places = {
        (number, time - len(main_ids) * (number > 0)): place
        for place, (number, time) in enumerate(zip(row.row.branch_ids.tolist(), row.row.time_ids.tolist(), strict=True))
    }
    assert len(recorded) >= 15
    for key, value in recorded.items():
        torch.testing.assert_close(value, logits[places[key]], atol=2e-4, rtol=1e-4)


def test_an_error_of_two_processes_is_said_once(model: Path, tmp_path: Path) -> None:
    """By the first one, and again where torchrun sums up; the other process waits for its end in silence."""
    script = ROOT / "trainer" / "train_hf_parallel_lora.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    done = subprocess.run(
        [*launch, *command(model, tmp_path / "none.jsonl", tmp_path)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "none.jsonl: no such file" in line]
    assert [line for line in said if not line.lstrip().startswith("traceback :")] == said[:1]
    assert len(said) <= 2


@pytest.mark.parametrize(
    ("script", "rows", "name"),
    [
        (
            "train_hf_lora",
            [{"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}],
            "qwen2_parallel_lora_hf_final.pth",
        ),
        ("train_hf_parallel_lora", [{"text": "some-text"}], "hf_parallel_lora_final.pth"),
    ],
)
def test_documented_scripts(
    script: str,
    rows: list[dict[str, Any]],
    name: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 9))
    given = command(model, data, tmp_path / "out", "--log-interval", 1)
    assert run_program(ROOT / "trainer" / f"{script}.py", *given) == 0
    shown = capsys.readouterr().err
    assert (tmp_path / "out" / "lora" / name).is_file()
    assert "step 1/2 loss" in shown
    assert "9 records in 3 rows: 9 branches" in shown


def test_documented_imports() -> None:
    from trainer.train_hf_lora import auto_pair_indices as one
    from trainer.train_hf_parallel_lora import auto_pair_indices as other

    assert one is other


def test_pretraining_makes_a_model_that_loads(model: Path, data: Path, tmp_path: Path) -> None:
    small = ["--hidden_size", 32, "--num_hidden_layers", 1, "--num_attention_heads", 2, "--num_key_value_heads", 1]
    flags = ["--task", "pretrain", "--tokenizer_path", model, *small, "--max_steps", 3, "--learning_rate", 0.01]
    given = [str(flag) for flag in [*flags, *command(model, data, tmp_path)[2:]]]
    assert main(["train", *given]) == 0
    folder = tmp_path / "pretrain" / "pretrain_final"
    loaded = load_model_with_lora(str(folder), device="cpu", dtype="float32")
    assert loaded.model.config.hidden_size == 32
    assert loaded.model.config._attn_implementation == "sdpa"
    assert "parallelmind" not in (folder / "config.json").read_text()
    sidecar = read_sidecar(folder)
    assert sidecar is not None
    assert sidecar.rope is not None
    more = ["--no_patch_rope", "--overwrite", "--gradient_checkpointing", "true", "--dtype", "bfloat16"]
    assert main(["train", *given, *more, "--eval_ratio", "0.3"]) == 0
    assert read_sidecar(folder) is None
    assert find_rope_patch(load_model_with_lora(str(folder), device="cpu").model) is None


def test_a_config_file_gives_flags_and_the_command_line_comes_first(model: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"base_model: {model}\ndata_path: {data}\nlearning-rate: 2e-3\nnum_train_epochs: 3\npatch_rope: false\n"
        "target_modules: [q_proj, v_proj]\nuse_rslora: true\nuse_dora: false\nwarmup_steps: 10\n"
        "gradient_checkpointing: false\nlora_alpha: null\nloss_on_main: true\n"
    )
    chosen = _options(Namespace(config=config, learning_rate=0.5, debug=False, run=None))
    assert (chosen.learning_rate, chosen.epochs, chosen.patch_rope) == (0.5, 3, False)
    assert (chosen.target_modules, chosen.use_rslora, chosen.use_dora) == (("q_proj", "v_proj"), True, False)
    assert (chosen.lora_alpha, chosen.loss_on_main) == (None, True)
    assert chosen.hf == {"warmup_steps": 10, "gradient_checkpointing": False}
    for text, message in (
        ("learning_rat: 1", "unknown entry 'learning_rat'; did you mean learning_rate"),
        ("use_streaming: 1", "use_streaming is 1; it must be true or false"),
        ("xyzzy: 1", "unknown entry 'xyzzy'; entries are flags, without the dashes"),
        ("- 1", "expected lines such as `learning_rate: 1e-4`, found a list"),
        ("a: [", "not readable as YAML"),
    ):
        config.write_text(text)
        with pytest.raises(SettingsError, match=message):
            _options(Namespace(config=config))


def test_fields_of_training_arguments_are_flags(model: Path, data: Path, tmp_path: Path) -> None:
    more = ["--warmup-steps", 2, "--weight_decay", 0.1, "--lr_scheduler_type", "cosine", "--max_grad_norm", 0.5]
    assert main(["train", *command(model, data, tmp_path, *more, "--max_steps", 4, "--logging_steps", 1)]) == 0
    log = [json.loads(line) for line in (tmp_path / "logs/hf_parallel_lora/metrics.jsonl").open()]
    rates = [entry["learning_rate"] for entry in log]
    assert rates == pytest.approx([0, 0.5e-4, 1e-4, 0.5e-4])


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--warmup_step", "3"], 2, "unknown flag --warmup_step; did you mean --warmup_steps?"),
        (["--epochs", "none"], 2, "--epochs is 'none'; it must be a whole number, 1 or more."),
        (["--remove_unused_columns", "true"], 1, "--remove_unused_columns cannot be set here"),
        (["--hidden_size", "3"], 1, "--hidden_size makes a new model; it needs --task pretrain"),
        (["--task", "pretrain", "--lora_dropout", "0.1"], 1, "--lora_dropout is about LoRA"),
        (["--lr_scheduler_type", "linear", "--use_streaming"], 1, "give --max_steps"),
    ],
)
def test_wrong_flags(
    flags: list[str],
    code: int,
    message: str,
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        returned = main(["train", *command(model, data, tmp_path), *flags])
    except SystemExit as error:
        returned = int(str(error.code))
    assert (returned, message in capsys.readouterr().err) == (code, True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", r"--model_config .*c\.json: not readable as a config\.json \(expected an object, found a list\)"),
        ('{"hidden_size": 7}', "no qwen2 model can be made of --model_config and the flags of the new model"),
    ],
)
def test_wrong_configs_of_new_models(config: str, message: str, model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(config)
    flags = {"task": "pretrain", "base_model": None, "tokenizer_path": str(model), "model_config": path}
    with pytest.raises(SettingsError, match=message):
        train(options(model, data, tmp_path / "out", **flags))


def test_tokenizers_without_pad_or_eos(model: Path, data: Path, tmp_path: Path) -> None:
    for lacking in ("pad_token", "eos_token"):
        folder = tmp_path / lacking
        shutil.copytree(model, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config[lacking]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if lacking == "pad_token":
            assert train(options(folder, data, tmp_path / "out-pad", max_steps=1)).steps == 1
        else:
            with pytest.raises(SettingsError, match="no end-of-text token"):
                train(options(folder, data, tmp_path / "out"))


def test_a_merged_model_is_trained_on_with_its_own_settings(model: Path, data: Path, tmp_path: Path) -> None:
    first = train(options(model, data, tmp_path / "first", stride=7, visibility="columnar", max_steps=2))
    merged = tmp_path / "merged"
    assert (
        main(["merge", "--base_model", str(model), "--lora_path", str(first.written), "--output_dir", str(merged)]) == 0
    )
    second = train(options(merged, data, tmp_path / "second", max_steps=2))
    loaded = load_model_with_lora(str(merged), str(second.written), device="cpu", dtype="float32")
    assert loaded.settings == RopeSettings(pairs="interleaved", branch_stride=7, branch_range=64, visibility="columnar")
    with pytest.raises(SettingsError, match=r"merged.*\n.*--visibility isolated given, columnar stored"):
        train(options(merged, data, tmp_path / "never", visibility="isolated"))
    with pytest.raises(SettingsError, match="do not belong together"):
        load_model_with_lora(str(merged), str(_other_rope(first.written, tmp_path)), device="cpu")


def _other_rope(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter that was trained with another stride."""
    copy = folder / "other.pth"
    shutil.copy(adapter, copy)
    sidecar = read_sidecar(adapter)
    assert sidecar is not None
    write_sidecar(copy, Sidecar(rope=RopeSettings(branch_stride=64), rank=sidecar.rank, base_model=""))
    return copy


@pytest.mark.parametrize("flags", [{"use_dora": True}, {"use_rslora": True, "lora_alpha": 16.0}])
def test_answers_of_other_kinds_of_lora(flags: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    """Packed for the CPU and decoded in branches, token for token what `generate` writes on each branch alone."""
    report = train(options(model, data, tmp_path / "out", epochs=3, **flags))
    loaded = load_model_with_lora(str(model), str(report.written), device="cpu", dtype="float32")
    base = load_model_with_lora(str(model), device="cpu", dtype="float32", patch_rope=True)
    prompts = ["q0?", "q1?q1?", "q2?"]
    ids = [loaded.tokenizer("mmm1" + prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
    expected, untrained = [], []
    for number, prompt in enumerate(ids, 1):
        for model_, answers in ((loaded.model, expected), (base.model, untrained)):
            answers.append(greedy(model_, prompt, main_tokens=4, number=number, count=6))
    optimize_for_cpu(loaded.model)
    engine = Engine(loaded.model, loaded.tokenizer)
    sampling = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)
    result = engine.generate([Request(main="mmm1", branches=prompts)], sampling)[0]
    assert [branch.token_ids for branch in result.branches] == expected != untrained


def greedy(model: Any, ids: torch.Tensor, *, main_tokens: int, number: int, count: int) -> list[int]:
    """The likeliest tokens after a branch alone, by full forwards."""
    start = ids.shape[1]
    for _ in range(count):
        time = torch.arange(ids.shape[1])[None]
        positions = torch.stack(((time >= main_tokens) * number * 128, time), dim=-1)
        with torch.no_grad():
            logits = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), dim=-1)
    return ids[0, start:].tolist()


def test_a_model_that_needs_2d_rope_itself_is_trained_with_it(model: Path, data: Path, tmp_path: Path) -> None:
    """As pretraining and merging leave it: the folder says so, and flags that contradict it are refused."""
    folder = tmp_path / "whole"
    shutil.copytree(model, folder)
    rope = RopeSettings(branch_stride=7, visibility="columnar")
    write_sidecar(folder, Sidecar(rope=rope, rank=1, base_model=""))
    sidecar = read_sidecar(train(options(folder, data, tmp_path / "out", max_steps=1)).written)
    assert sidecar is not None
    assert sidecar.rope == replace(rope, branch_range=64)
    for flags, message in (({"stride": 64}, "64 given, 7 stored"), ({"patch_rope": False}, "contradicts the model")):
        with pytest.raises(SettingsError, match=message):
            train(options(folder, data, tmp_path / "never", **flags))
