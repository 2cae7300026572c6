"""`--push_to_hub`, against a hub on this machine: what it gets, and that nothing is lost where it gets nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from parallelmind.cli.main import main
from parallelmind.errors import SettingsError, TrainingError
from parallelmind.models.lora import load_lora
from parallelmind.training.card import CARD_NAME
from tests.fake_hub import FakeHub, fake_hub
from tests.training.runs import options, train

TOKEN = "hf_secretsecretsecret"
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "parallelmind.json", "README.md"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found


def pushing(**more: Any) -> dict[str, Any]:
    return {"hf": {"push_to_hub": True, "hub_model_id": "me/stories", "hub_token": TOKEN, **more}, "max_steps": 2}


def holds_token(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_command_pushes_the_adapter_and_checkpoints(
    model: Path, data: Path, tmp_path: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train", "--base_model", model, "--data_path", data,
        "--out_dir", tmp_path / "out", "--lora_name", "stories", "--device", "cpu", "--dtype", "float32",
        "--branches_per_sample", 3, "--batch_size", 6, "--max_steps", 4, "--save_interval", 2,
        "--push_to_hub", "true", "--hub_token", TOKEN, "--hub_private_repo", "true", "--hub_strategy", "checkpoint",
        "--hub_always_push", "true",
    ]  # fmt: skip
    assert main([str(one) for one in command]) == 0
    out, err = capfd.readouterr()
    assert hub.made == [{"name": "stories", "organization": None, "visibility": "private"}]
    assert hub.tokens == {TOKEN}
    files = hub.files["me/stories"]
    assert f"{hub.endpoint}/me/stories" in err
    assert files.keys() >= ADAPTER | {"stories.pth", "stories.parallelmind.json"}
    assert {name for name in files if "/" in name} >= {"last-checkpoint/trained.safetensors"}
    assert hub.commits[-1] == "stories, 4 steps"
    assert {"Step 2", "Checkpoint of step 2"} <= set(hub.commits)
    final = tmp_path / "out" / "lora" / "stories_final"
    assert files["adapter_model.safetensors"] == (final / "adapter_model.safetensors").read_bytes()
    assert files["stories.pth"] == final.with_suffix(".pth").read_bytes()
    assert files["README.md"] == (final / "README.md").read_bytes()
    assert b"hf download me/stories --local-dir stories" in files["README.md"]
    # The folder of the base model is nobody's business.
    assert json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == model.name
    for name, content in files.items():
        assert str(tmp_path).encode() not in content.replace(b"\\/", b"/") or name.startswith("last-checkpoint/"), name
        assert str(model).encode() not in content, name
    assert TOKEN not in out + err
    assert not holds_token(tmp_path)
    assert "base_model" not in ModelCard(files["README.md"].decode()).data.to_dict()


def test_a_repository_that_is_there_is_written_to_again(
    model: Path, data: Path, tmp_path: Path, hub: FakeHub, base_model: Any
) -> None:
    first = train(options(model, data, tmp_path / "out", **pushing()))
    assert first.pushed == f"{hub.endpoint}/me/stories"
    again = train(options(model, data, tmp_path / "out", **pushing()))
    assert not again.trained
    assert hub.commits == ["hf_parallel_lora, 2 steps"] * 2
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, content in hub.files["me/stories"].items():
        (folder / name).write_bytes(content)
    load_lora(base_model, folder)


def test_a_card_that_was_edited_is_pushed_as_it_is(model: Path, data: Path, tmp_path: Path, hub: FakeHub) -> None:
    plain = options(model, data, tmp_path / "out", max_steps=2)
    card = tmp_path / "out" / "lora" / "hf_parallel_lora_final" / CARD_NAME
    train(plain)
    edited = card.read_text().replace("# hf_parallel_lora", "# My adapter")
    card.write_text(edited)
    train(options(model, data, tmp_path / "out", **pushing()))
    assert hub.files["me/stories"]["README.md"].decode() == edited
    card.unlink()
    train(plain)
    assert "# hf_parallel_lora" in card.read_text()


def test_a_branch_and_a_pretrained_model(model: Path, data: Path, tmp_path: Path, hub: FakeHub) -> None:
    small = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    more = {"task": "pretrain", "base_model": None, "tokenizer_path": str(model), "model_overrides": small}
    train(options(model, data, tmp_path / "out", **more, **pushing(hub_revision="try")))
    files = hub.files["me/stories@try"]
    assert files.keys() >= {"config.json", "model.safetensors", "tokenizer.json", "parallelmind.json", "README.md"}
    assert ModelCard(files["README.md"].decode()).data.library_name == "transformers"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"--push_to_hub: me/stories .* does not know the token \(401\); give --hub_token or HF_TOKEN"),
        (403, r"--push_to_hub: me/stories .* may not write there \(403\); .*--hub_model_id"),
        (404, r"--push_to_hub: me/stories .* no such repository or owner.* \(404\); check --hub_model_id"),
        (418, r"--push_to_hub: me/stories .* the Hub answered 418"),
    ],
)
def test_a_hub_that_refuses_is_told_before_training(
    status: int, message: str, model: Path, data: Path, tmp_path: Path, hub: FakeHub
) -> None:
    hub.refuses = {"create": status}
    with pytest.raises(SettingsError, match=message) as raised:
        train(options(model, data, tmp_path / "out", **pushing()))
    assert TOKEN not in str(raised.value)
    assert "Nothing was trained yet" in str(raised.value)
    assert not (tmp_path / "out" / "lora").exists()


@pytest.mark.parametrize("status", [401, *(pytest.param(status, marks=pytest.mark.slow) for status in (403, 404, 418))])
def test_what_cannot_be_pushed_at_the_end_is_kept(
    status: int, model: Path, data: Path, tmp_path: Path, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.refuses = {"commit": status}
    with pytest.raises(TrainingError, match=rf"--push_to_hub: me/stories could not .*\({status}|{status} \(") as raised:
        train(options(model, data, tmp_path / "out", **pushing(), save_interval=1))
    pth = tmp_path / "out" / "lora" / "hf_parallel_lora_final.pth"
    assert f"the adapter is {pth}" in str(raised.value)
    assert pth.is_file()
    assert (tmp_path / "out" / "logs" / "hf_parallel_lora" / "report.html").is_file()
    assert caplog.text.count("could not be written to") >= 1  # the steps, which went on
    assert TOKEN not in str(raised.value) + caplog.text
    assert not holds_token(tmp_path)
    hub.refuses = {}
    again = train(options(model, data, tmp_path / "out", **pushing(), save_interval=1))
    assert not again.trained
    assert hub.files["me/stories"].keys() >= ADAPTER


def test_no_hub_and_no_network(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"--push_to_hub: me/stories .* HF_HUB_OFFLINE is set; unset it"):
        train(options(model, data, tmp_path / "out", **pushing()))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"--push_to_hub: me/stories .* cannot be reached .*; check the network"):
        train(options(model, data, tmp_path / "out", **pushing()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "--hub_model_id must be NAME or OWNER/NAME"),
        ({"hub_model_id": "me/stories"}, "--hub_model_id is about pushing; give --push_to_hub as well"),
    ],
)
def test_flags_that_mean_nothing(
    given: dict[str, Any], message: str, model: Path, data: Path, tmp_path: Path, hub: FakeHub
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(options(model, data, tmp_path / "out", hf=given, max_steps=2))


@pytest.fixture
def base_model(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model)
