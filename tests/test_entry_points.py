"""The documented scripts and import paths, from a checkout that is not installed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import inference_hf_lora
from tests.exact import ON_CPU
from tests.programs import command_line

ROOT = Path(__file__).parents[1]
IMPORTS = [
    "from scripts.inference_hf_lora import load_model_with_lora, generate_text, auto_pair_indices",
    "from model.model_lora import apply_lora, load_lora, save_lora",
    "from trainer.train_hf_lora import auto_pair_indices",
    "from trainer.train_hf_parallel_lora import auto_pair_indices",
    "from parallel.columnar import patch_model_with_interleaved_2d_rope, set_rope_pos2d, build_columnar_causal_mask",
]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )


def test_the_documented_imports_and_python_use_from_a_checkout() -> None:
    # -S -E would hide torch too; hiding the installed package alone shows that the checkout suffices.
    hide = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    program = """
model, tokenizer, patch_rope = load_model_with_lora(base_model="tiny", device="cpu", dtype="float32")
main = "Story: The age of Dan is 26. The hat costs 91 dollars. Rosa turned 88 this year. Emma likes blue.\\n"
print(generate_text(model, tokenizer, main + "How old is Dan?", temperature=0, repetition_penalty=1.0))
patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
print(repr(generate_text(model, tokenizer, main + "How old is Dan?", max_new_tokens=3)))
"""
    done = run("-c", hide + "\n".join(IMPORTS) + "\nprint(load_model_with_lora.__module__)" + program)
    assert done.returncode == 0, done.stderr
    module, answer, *_ = done.stdout.splitlines()
    assert module == "parallelmind.models.loader"
    assert answer.strip() == "26"


def test_generate_and_chat_on_the_bundled_model(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*command: str, stdin: str = "") -> str:
        with command_line("inference_hf_lora.py", stdin=stdin):
            assert inference_hf_lora.main([*command, "--base_model", "tiny", *ON_CPU]) == 0
        return capsys.readouterr().out

    exact = ["--temperature", "0", "--repetition_penalty", "1"]
    prompt = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue.\nHow old is Dan?"
    generated = shown("--mode", "generate", *exact, "--prompt", prompt)
    assert generated.strip() == "26"
    assert shown("--mode=generate", *exact, "--prompt", "-", stdin=prompt) == generated
    preset = ["--preset", "factual", "--max_new_tokens", "4"]
    chat = shown(*exact, *preset, stdin="hello\n\nand more\nquit\n")
    assert chat.count("Assistant: ") == 2
    assert chat.count("User: ") == 4
    assert shown(*exact)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--mode", "dance"], "must be chat or generate"),
        (["--mode", "generate", "--base_model", "tiny"], "--prompt"),
        (
            ["--mode", "generate", "--base_model", "tiny", "--prompt", "x", "--temprature", "0"],
            "--temperature",
        ),
        (["--mode", "generate", "--base_model", "tiny", "--prompt", "x", "--top_p", "3"], "top_p is 3"),
        (["--mode", "generate", "--base_model", "tiny", "--prompt", "x", *ON_CPU, "--device", "cuda:99"], "--device"),
        (["--mode", "generate", "--base_model", "tiny", "--prompt", "x", *ON_CPU, "--lora_path", "no.pth"], "no.pth"),
    ],
)
def test_wrong_use_is_one_line_with_the_remedy(
    command: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = inference_hf_lora.main(command)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_help_without_a_mode_shows_the_flags_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        with contextlib.suppress(SystemExit):
            assert inference_hf_lora.main(words) == 0
        return capsys.readouterr().out

    def flags(text: str) -> set[str]:
        return set(re.findall(r"^  (?:-h, )?(--\w+)", text, re.MULTILINE))

    both, chat, generate = shown("--help"), shown("--mode", "chat", "--help"), shown("--mode", "generate", "--help")
    assert {"--prompt", "--branch", "--system", "--base_model"} <= flags(both)
    assert flags(both) == (flags(chat) | flags(generate) | {"--mode"}) - {"--debug"}
    assert "--prompt" not in flags(chat)
