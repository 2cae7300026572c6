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

ROOT = Path(__file__).parents[1]
IMPORTS = [
    "from scripts.inference_hf_lora import load_model_with_lora, generate_text, auto_pair_indices",
    "from model.model_lora import apply_lora, load_lora, save_lora",
    "from trainer.train_hf_lora import auto_pair_indices",
    "from trainer.train_hf_parallel_lora import auto_pair_indices",
    "from parallel.columnar import patch_model_with_interleaved_2d_rope, set_rope_pos2d, build_columnar_causal_mask",
]


def run(*command: str, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def test_documented_import_paths() -> None:
    # -S -E would hide torch too; hiding the installed package alone shows that the checkout suffices.
    hide = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    done = run("-c", hide + "\n".join(IMPORTS) + "\nprint(load_model_with_lora.__module__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "parallelmind.models.loader"


def test_the_documented_python_use_end_to_end() -> None:
    program = """
from scripts.inference_hf_lora import load_model_with_lora, generate_text, auto_pair_indices
from parallel.columnar import patch_model_with_interleaved_2d_rope
model, tokenizer, patch_rope = load_model_with_lora(base_model="tiny", device="cpu", dtype="float32")
main = "Story: The age of Dan is 26. The hat costs 91 dollars. Rosa turned 88 this year. Emma likes blue.\\n"
print(generate_text(model, tokenizer, main + "How old is Dan?", temperature=0, repetition_penalty=1.0))
patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
print(repr(generate_text(model, tokenizer, main + "How old is Dan?", max_new_tokens=3)))
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].strip() == "26"


def test_generate_and_chat_on_the_bundled_model(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "inference_hf_lora.py")
    flags = ["--base_model", "tiny", "--dtype", "float32", "--temperature", "0", "--repetition_penalty", "1"]
    prompt = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue.\nHow old is Dan?"
    done = run(script, "--mode", "generate", *flags, "--prompt", prompt, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "26"
    piped = run(script, "--mode=generate", *flags, "--prompt", "-", stdin=prompt, cwd=tmp_path)
    assert piped.stdout == done.stdout
    chat = run(
        script,
        *flags,
        "--preset",
        "factual",
        "--max_new_tokens",
        "4",
        stdin="hello\n\nand more\nquit\n",
        cwd=tmp_path,
    )
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.count("Assistant: ") == 2
    assert chat.stdout.count("User: ") == 4
    assert run(script, *flags, stdin="", cwd=tmp_path).returncode == 0


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


def test_the_demo_is_exact_and_identical(tmp_path: Path) -> None:
    done = run("-m", "parallelmind", "demo", "--out_dir", str(tmp_path / "demo"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "yes, all" in done.stdout
    assert "32 records loaded = 32 answered + 0 failed" in done.stdout
    exact = next(line for line in done.stdout.splitlines() if "exact answers" in line)
    assert float(exact.split("(")[1].split("%")[0]) >= 95
    assert len((tmp_path / "demo" / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 256
