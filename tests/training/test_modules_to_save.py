"""--modules_to_save: what was trained whole is what is loaded, merged, and continued from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from parallelmind.cli.main import main
from parallelmind.engine.engine import Engine
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.whole_modules import whole_parameters
from parallelmind.training.options import TrainOptions
from tests.training.runs import (
    Killed,
    RecordedProgress,
    assert_equal,
    options,
    raises_killed,
    save_model,
    train,
    weights,
)

FINAL = "lora/hf_parallel_lora_final"
BOTH = ("embed_tokens", "lm_head")


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"), tie_word_embeddings=request.param)


def answers(model_path: str, lora_path: Path | None) -> list[tuple[int, ...]]:
    model, tokenizer, _ = load_model_with_lora(model_path, lora_path, device="cpu", dtype="float32")
    results = Engine(model, tokenizer).generate([{"main": "mmm1", "branches": ["q0?", "q1?q1?"]}])
    return [tuple(branch.token_ids) for branch in results[0].branches]


@pytest.mark.parametrize(
    "modules",
    [BOTH, pytest.param(("lm_head",), marks=pytest.mark.slow), pytest.param(("embed_tokens",), marks=pytest.mark.slow)],
)
def test_trained_loaded_and_merged_are_the_same(
    modules: tuple[str, ...], base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train(options(base, data, tmp_path, max_steps=4, modules_to_save=modules, save_interval=2))
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    assert ("gives it another one there" in caplog.text) == tied
    state = weights(tmp_path / f"{FINAL}.pth")
    whole = {name for name in state if ".modules_to_save." in name}
    assert whole == {
        {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[name] + ".modules_to_save.weight"
        for name in modules
    }
    assert all(
        not torch.equal(state[name], weights(tmp_path / "lora/hf_parallel_lora_step2.pth")[name]) for name in whole
    )
    config = json.loads((tmp_path / FINAL / "adapter_config.json").read_text())
    assert config["modules_to_save"] == list(modules)
    for path in (tmp_path / f"{FINAL}.pth", tmp_path / FINAL):
        model, _, _ = load_model_with_lora(str(base), path, device="cpu", dtype="float32")
        for name, parameter in whole_parameters(model).items():
            module, _, leaf = name.rpartition(".")
            assert torch.equal(parameter, state[f"{module}.modules_to_save.{leaf}"])
    expected = answers(str(base), tmp_path / FINAL)
    assert answers(str(base), tmp_path / f"{FINAL}.pth") == expected
    merge = ["--base_model", str(base), "--lora_path", str(tmp_path / FINAL), "--output_dir", str(tmp_path / "merged")]
    assert main(["merge", *merge, "--device", "cpu", "--dtype", "float32"]) == 0
    assert answers(str(tmp_path / "merged"), None) == expected
    assert "| trained whole | none |" not in (tmp_path / FINAL / "README.md").read_text()


def test_a_killed_run_goes_on_and_another_run_continues(base: Path, data: Path, tmp_path: Path) -> None:
    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    def chosen(out: str) -> TrainOptions:
        return options(base, data, tmp_path / out, max_steps=4, modules_to_save=BOTH, save_interval=2)

    train(chosen("whole"))
    with raises_killed():
        train(chosen("killed"), RecordedProgress(kill))
    train(chosen("killed"))
    final = weights(tmp_path / "whole" / f"{FINAL}.pth")
    assert_equal(weights(tmp_path / "killed" / f"{FINAL}.pth"), final)
    more = {"load_lora": str(tmp_path / "whole" / FINAL), "max_steps": 1, "learning_rate": 1e-12}
    train(options(base, data, tmp_path / "on", **more))
    assert_equal(weights(tmp_path / "on" / f"{FINAL}.pth"), final, tolerance=1e-6)


@pytest.mark.half_precision
def test_a_base_model_in_half_precision(base: Path, data: Path, tmp_path: Path) -> None:
    """What is trained is float32, what it computes with is not."""
    more = {"eval_data_path": data, "eval_interval": 2, "dtype": "bfloat16", "modules_to_save": BOTH}
    report = train(options(base, data, tmp_path, max_steps=4, **more))
    state = weights(tmp_path / f"{FINAL}.pth")
    assert {value.dtype for value in state.values()} == {torch.float32}
    first = train(options(base, data, tmp_path / "first", max_steps=1, **(more | {"eval_interval": 1})))
    assert report.evaluation["eval_loss"] < first.evaluation["eval_loss"]
