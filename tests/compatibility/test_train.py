"""`python trainer/train_hf_parallel_lora.py`: every flag but those of the data, shown by what it changes."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoTokenizer

from parallelmind.columnar.rope import auto_pair_indices, find_rope_patch
from parallelmind.models.sidecar import read_sidecar
from tests.compatibility.command_lines import parsed
from tests.compatibility.contract import proves
from tests.compatibility.train_runs import Ran, Trainer, adapter, trainer_of, write_jsonl
from tests.training.runs import assert_equal, save_model

LONG = 600


def records(count: int = 5, branches: int = 9) -> list[dict[str, Any]]:
    """The last branch of the first record is longer than a branch may be by default."""
    rows: list[dict[str, Any]] = [
        {"main": f"main{n}", "branches": [{"prompt": f"q{n}{k}?", "completion": f"a{k}"} for k in range(branches)]}
        for n in range(count)
    ]
    rows[0]["branches"][-1] = "x" * LONG
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", records())


@pytest.fixture(scope="module")
def default(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run with the required flags alone, in a folder of its own."""
    folder = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = Trainer(folder, None, "--base_model", model, "--data_path", data, "--out_dir", "out")()
        ran.out = folder / "out"
    return ran


@pytest.fixture
def train(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Trainer:
    return trainer_of(tmp_path, capsys, model, data)


def size(weights: dict[str, torch.Tensor], which: str = ".B.weight") -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for name, value in weights.items() if which in name))


@proves(
    "train", "--tokenizer_path", "--lora_rank", "--lora_name", "--load_lora", "--patch_rope", "--rope_2d_ratio",
    "--stride", "--hf_dataset", "--hf_subset", "--use_streaming", "--max_seq_len", "--branches_per_sample",
    "--max_branches_per_sample", "--min_branches_per_sample", "--epochs", "--batch_size", "--batch_by_samples",
    "--learning_rate", "--accumulation_steps", "--grad_clip", "--dtype", "--out_dir", "--log_interval",
    "--save_interval", "--use_wandb", "--ddp",
)  # fmt: skip
def test_the_defaults(default: Ran, model: Path) -> None:
    """A run with `--base_model` and `--data_path` alone has the documented defaults."""
    documented: dict[str, Any] = {"epochs": 1, "batch_size": 16, "batch_by_samples": False, "max_seq_len": 512}
    documented |= {"branches_per_sample": 8, "max_branches_per_sample": 0, "min_branches_per_sample": 1}
    documented |= {"load_lora": None, "hf_dataset": None, "hf_subset": None, "tokenizer_path": None}
    documented |= {"use_streaming": False, "use_wandb": False, "ddp": False}
    documented |= {"dtype": "bfloat16", "out_dir": Path("out")}
    assert parsed("train", "--base_model", "m", "--data_path", "d").items() >= documented.items()
    arguments, sidecar = default.arguments, read_sidecar(default.out / "lora" / "hf_parallel_lora_final.pth")
    assert arguments.run_name == "hf_parallel_lora"
    assert sidecar is not None
    assert sidecar.rope is not None
    assert (sidecar.rank, sidecar.rope.ratio, sidecar.rope.branch_stride) == (8, 0.5, 128)
    assert (arguments.learning_rate, arguments.max_grad_norm) == (1e-4, 1.0)
    assert arguments.gradient_accumulation_steps == 1
    assert [row[0] for row in default.texts()].count("main0") == 2  # its 9 branches are two rows, of one pass
    assert (arguments.logging_steps, arguments.save_steps, arguments.report_to) == (50, 500, [])
    assert default.files() == {"hf_parallel_lora_final.pth"}


@proves("train", "--base_model", "--tokenizer_path")
def test_the_model_and_its_tokenizer(train: Trainer, default: Ran, model: Path, tmp_path: Path) -> None:
    """Another model has an adapter of other shapes, another tokenizer gives other ids; no model is an error."""
    other = save_model(tmp_path / "other", hidden_size=32)
    name = "model.layers.0.self_attn.q_proj.lora.A.weight"
    assert default.final()[name].shape == (8, 64)
    own = AutoTokenizer.from_pretrained(model)
    vocabulary, tokenizer = own.get_vocab(), own.backend_tokenizer.to_str()
    swapped = tokenizer.replace(f'"m":{vocabulary["m"]}', '"m":-1').replace(f'"n":{vocabulary["n"]}', '"n":-2')
    swapped = swapped.replace('"m":-1', f'"m":{vocabulary["n"]}').replace('"n":-2', f'"n":{vocabulary["m"]}')
    assert swapped != tokenizer
    own.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(swapped)
    ran = train("--base_model", other, "--tokenizer_path", tmp_path / "tokenizer", "--max_steps", 1)
    assert ran.final()[name].shape == (8, 32)
    assert ran.texts()[0][0] == "naim0"
    assert train("--max_steps", 1).texts()[0][0] == "main0"
    alone = Trainer(tmp_path, train._capsys, "--data_path", tmp_path / "tokenizer" / "tokenizer.json")
    assert "--base_model is required" in alone(expect=1).shown


@proves("train", "--lora_rank", "--lora_name", "--out_dir", "--save_interval")
@proves("train", "out/lora/{lora_name}_step{N}.pth", "out/lora/{lora_name}_final.pth")
def test_rank_and_files(train: Trainer, default: Ran, tmp_path: Path) -> None:
    """Rank 3 gives factors of rank 3, in files of the given name and folder, one every 2 steps and one at the end."""
    flags = ("--lora_rank", 3, "--lora_name", "mine", "--out_dir", tmp_path / "there", "--save_interval", 2)
    ran = train(*flags, "--max_steps", 5)
    lora = tmp_path / "there" / "lora"
    assert {path.name for path in lora.glob("*.pth")} == {"mine_step2.pth", "mine_step4.pth", "mine_final.pth"}
    states = [adapter(lora / f"mine_{name}.pth") for name in ("step2", "step4", "final")]
    for state in states:
        assert {min(value.shape) for value in state.values()} == {3}
    assert size(states[0]) != size(states[1]) != size(states[2])
    assert {min(value.shape) for value in default.final().values()} == {8}
    assert ran.files() == {path.name for path in lora.glob("*.pth")}


@proves("train", "--load_lora")
def test_continued_from_weights(train: Trainer) -> None:
    """With a vanishing learning rate, the run writes the weights that it was told to continue from, at their rank."""
    first = train("--lora_rank", 4, "--max_steps", 2, "--learning_rate", 0.01)
    path = first.out / "lora" / "hf_parallel_lora_final.pth"
    again = train("--load_lora", path, "--max_steps", 1, "--learning_rate", 1e-12)
    assert_equal(again.final(), first.final(), tolerance=1e-6)
    assert size(train("--lora_rank", 4, "--max_steps", 1, "--learning_rate", 1e-12).final()) < size(first.final()) / 100


@proves("train", "--patch_rope", "--no_patch_rope", "--rope_2d_ratio", "--stride", "--branch_stride")
def test_2d_rope(train: Trainer, default: Ran) -> None:
    """The flags choose the rotation that the model trains with, its positions, and what the sidecar file says."""
    for ran, ratio, stride in (
        (default, 0.5, 128),
        (train("--patch_rope", "--rope_2d_ratio", 0.25, "--stride", 32, "--max_steps", 1), 0.25, 32),
        (train("--branch-stride", 64, "--max-steps", 1), 0.5, 64),
    ):
        rope = find_rope_patch(ran.model)
        assert rope is not None
        expected = auto_pair_indices(ran.model, ratio)
        assert list(rope.pair_indices) == expected
        places, times = ran.batches[0]["position_ids"].unbind(-1)
        branches = ran.batches[0]["attention_mask"][:, 0, :, 0]
        real = branches >= 0
        assert torch.equal(places[real], branches[real] * stride)
        assert torch.equal(times[real], ran.batches[0]["attention_mask"][:, 0, :, 1][real].long())
        sidecar = read_sidecar(ran.out / "lora" / "hf_parallel_lora_final.pth")
        assert sidecar is not None
        assert sidecar.rope is not None
        assert (sidecar.rope.ratio, sidecar.rope.branch_stride) == (ratio, stride)
    off = train("--no_patch_rope", "--max_steps", 1)
    assert find_rope_patch(off.model) is None
    assert off.batches[0]["position_ids"].dim() == 2
    sidecar = read_sidecar(off.out / "lora" / "hf_parallel_lora_final.pth")
    assert sidecar is not None
    assert sidecar.rope is None


@proves("train", "--learning_rate", "--grad_clip")
def test_the_size_of_a_step(train: Trainer, default: Ran) -> None:
    """One step of plain SGD moves the adapter by learning rate × gradient, the latter cut to the clipping norm."""
    one = ("--max_steps", 1, "--optim", "sgd", "--lr_scheduler_type", "constant", "--log_interval", 1)
    free = train(*one, "--learning_rate", 0.5, "--grad_clip", 0)
    norm = free.log("grad_norm")[1]
    assert norm > 0.1
    assert free.log("learning_rate") == {1: 0.5}
    assert size(free.final()) == pytest.approx(0.5 * norm, rel=1e-3)
    clipped = train(*one, "--learning_rate", 0.25, "--grad_clip", 0.1)
    assert size(clipped.final()) == pytest.approx(0.25 * 0.1, rel=1e-3)
    assert default.arguments.max_grad_norm == 1.0


@proves("train", "--accumulation_steps", "--epochs", "--log_interval")
def test_batches_steps_and_log(train: Trainer) -> None:
    """Two batches make a step of up to 32 branches, two passes take twice as many, and every second step is logged."""
    once = train("--log_interval", 1)
    batches = len(once.batches)
    assert list(once.log("loss")) == list(range(1, batches + 1))
    assert once.row_sizes() == [8, 1] * 5
    more = train("--epochs", 2, "--accumulation_steps", 2, "--log_interval", 2)
    assert "4 steps done" in more.shown  # of 27 branches and of 18, in each pass
    assert len(more.batches) == 2 * 4
    assert list(more.log("loss")) == [2, 4]
    passes = [rows for rows in more.texts() if rows[0] == "main0"]
    assert len(passes) == 2 * len([rows for rows in once.texts() if rows[0] == "main0"])


@proves("train", "--dtype")
def test_number_formats(train: Trainer, default: Ran) -> None:
    """bfloat16 and float32 are what the frozen weights have and the forward computes in; float16 needs a GPU."""

    def formats(ran: Ran) -> tuple[set[torch.dtype], set[torch.dtype]]:
        parameters = list(ran.model.parameters())
        frozen = {value.dtype for value in parameters if not value.requires_grad}
        return frozen, {value.dtype for value in parameters if value.requires_grad}

    assert formats(default) == ({torch.bfloat16}, {torch.float32})
    assert (default.arguments.bf16, default.arguments.fp16) == (True, False)
    exact = train("--dtype", "float32", "--max_steps", 1)
    assert formats(exact) == ({torch.float32}, {torch.float32})
    assert (exact.arguments.bf16, exact.arguments.fp16) == (False, False)
    refused = train("--dtype", "float16", expect=1)
    assert "--dtype float16 cannot be trained in on a CPU" in refused.shown


@proves("train", "--use_wandb")
def test_weights_and_biases(train: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package (a stand-in here) the run is opened and its losses are logged; without it, an error names it."""
    if importlib.util.find_spec("wandb") is None:
        assert "pip install 'parallelmind[wandb]'" in train("--use_wandb", expect=1).shown
    stand_in = mock.MagicMock(run=None, __version__="0.20.0", __spec__=importlib.util.spec_from_loader("wandb", None))
    stand_in.init.side_effect = lambda **_: setattr(stand_in, "run", mock.MagicMock())
    errors = mock.MagicMock(ConfigError=ValueError)
    for name in ("wandb", "wandb.sdk", "wandb.sdk.lib"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    ran = train("--use_wandb", "--max_steps", 2, "--log_interval", 1)
    assert stand_in.init.call_args.kwargs["name"] == "hf_parallel_lora"
    logged = [call.args[0]["train/loss"] for call in stand_in.log.call_args_list if "train/loss" in call.args[0]]
    assert logged == list(ran.log("loss").values())
    assert len(logged) == 2


@proves("train", "--ddp")
def test_ddp_needs_a_launcher(train: Trainer) -> None:
    """`--ddp` without torchrun is an error that shows the command."""
    assert "torchrun --nproc_per_node N … --ddp" in train("--ddp", expect=1).shown


@proves("train", "--batch_size", "--accumulation_steps", "--branches_per_sample")
def test_a_batch_smaller_than_a_row(train: Trainer) -> None:
    """Two branches at a time, accumulated 16 times, write what 32 at a time do, though rows have 8 branches."""
    same = ("--epochs", 1, "--optim", "sgd", "--grad_clip", 0, "--learning_rate", 0.05, "--branches_per_sample", 8)
    small = train("--batch_size", 2, "--accumulation_steps", 16, *same)
    assert max(small.row_sizes()) == 2
    large = train("--batch_size", 32, *same)
    assert max(large.row_sizes()) == 8
    assert_equal(small.final(), large.final(), tolerance=1e-4)


@proves("train", "--lora_name", "a run of other settings")
def test_one_command_after_another(train: Trainer, tmp_path: Path) -> None:
    """Another rank under one name writes NAME_2; a default that is spelled out goes on with the run it is of."""
    train("--out_dir", tmp_path / "one", "--max_steps", 1)
    other = train("--out_dir", tmp_path / "one", "--max_steps", 1, "--lora_rank", 4)
    assert "hf_parallel_lora is a run with other settings (--lora_rank 4 instead of 8)" in other.shown
    assert other.files() == {"hf_parallel_lora_final.pth", "hf_parallel_lora_2_final.pth"}
    same = train("--out_dir", tmp_path / "one", "--max_steps", 1, "--rope_2d_ratio", 0.5, "--lora_rank", 8)
    assert "hf_parallel_lora is complete already: all of its 1 steps were done before" in same.shown
    assert same.files() == other.files()
