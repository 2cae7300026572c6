"""`inference_hf_lora.py`: chat and generate, every flag with its default and effect, and the presets."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from parallelmind.columnar import find_rope_patch
from parallelmind.models import loader
from parallelmind.models.identity import bundled_model_path
from scripts import inference_hf_lora
from tests.compatibility.command_lines import link_checkout, parsed, run_script
from tests.compatibility.conftest import Adapters
from tests.compatibility.contract import proves
from tests.compatibility.inference_runs import (
    ANSWERS,
    QUESTIONS,
    STORY,
    Spy,
    watched_engines,
    watched_loading,
)
from tests.exact import ON_CPU
from tests.families import char_tokenizer, tiny_model
from tests.machines import machine_with_gpus
from tests.programs import command_line

PROMPT = STORY + QUESTIONS[0]
EXACT = ("--temperature", 0, "--repetition_penalty", 1)
HOT = ("--temperature", 50, "--repetition_penalty", 1, "--max_new_tokens", 8)
RANGES = {
    "factual": ((0.1, 0.3), (0.7, 0.8), (20, 30), (1.1, 1.1)),
    "creative": ((0.7, 0.9), (0.9, 0.95), (50, 100), (1.0, 1.0)),
    "code": ((0.1, 0.2), (0.8, 0.8), (30, 30), (1.1, 1.1)),
    "smalltalk": ((0.6, 0.8), (0.9, 0.9), (50, 50), (1.1, 1.1)),
    "translation": ((0.1, 0.1), (0.8, 0.8), (20, 20), (1.0, 1.0)),
}


class Run(NamedTuple):
    """A run of the script's `main` in this process."""

    code: int
    out: str
    err: str
    engines: list[Spy]


def script(*words: object, stdin: str = "", device: str | None = "cpu") -> Run:
    given = ["--base_model", "tiny", "--dtype", "float32", *([] if device is None else ["--device", device]), *words]
    out, err = io.StringIO(), io.StringIO()
    with (
        command_line("inference_hf_lora.py", stdin=stdin),
        watched_engines() as engines,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = inference_hf_lora.main([str(word) for word in given])
        except SystemExit as ended:
            code = int(str(ended.code))
    return Run(code, out.getvalue(), err.getvalue(), engines)


def generate(*flags: object, device: str | None = "cpu") -> Run:
    """The completion of the prompt whose greedy one is " 26"."""
    return script("--mode", "generate", "--prompt", PROMPT, *flags, device=device)


def chat(*messages: str, flags: Iterable[object] = EXACT) -> Run:
    return script("--mode", "chat", *flags, stdin="".join(message + "\n" for message in messages))


@proves(
    "single",
    "--lora_path",
    "--prompt",
    "--mode",
    "--max_new_tokens",
    "--temperature",
    "--top_p",
    "--top_k",
    "--repetition_penalty",
    "--dtype",
    "--load_in_8bit",
    "--load_in_4bit",
    '--device_map auto / device_map="auto"',
)
def test_defaults() -> None:
    """The documented defaults are those of the parser and of the sampling that the engine is asked for."""
    documented = {"max_new_tokens": 512, "dtype": "bfloat16", "lora_path": None, "device": None, "device_map": None}
    documented |= {"load_in_8bit": False, "load_in_4bit": False}
    assert parsed("chat", "--base_model", "m").items() >= documented.items()
    assert parsed("generate", "--base_model", "m", "--prompt", "p").items() >= documented.items()
    [sampling] = generate("--seed", 1).engines[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 50)
    assert (sampling.repetition_penalty, sampling.max_new_tokens) == (1.1, 512)


@proves("single", "--mode", "--prompt", "--base_model")
def test_modes(capsys: pytest.CaptureFixture[str]) -> None:
    """generate prints the completion of the prompt; without --mode it is a chat; anything else is refused."""
    assert generate(*EXACT).out == " 26\n"
    assert script(*EXACT, "--max_new_tokens", 2, stdin="hello\n").out.startswith("User: Assistant: ")
    assert "[--mode chat | --mode generate --prompt TEXT]" in script("--help").out
    for given, words in (
        (["--mode", "sing", "--base_model", "m"], "--mode is 'sing'; it must be chat or generate"),
        (["--mode", "generate", "--base_model", "m"], "--prompt"),
        (["--mode", "generate", "--prompt", "p"], "--base_model"),
    ):
        try:
            code = inference_hf_lora.main(given)
        except SystemExit as ended:
            code = int(str(ended.code))
        assert code == 2
        assert words in capsys.readouterr().err


@proves("single", "--base_model")
def test_base_model() -> None:
    """A folder is the model in it, and what is neither a folder nor on the Hub is named."""
    assert generate("--base_model", bundled_model_path(), *EXACT).out == " 26\n"
    missing = generate("--base_model", "./nowhere")
    assert missing.code == 1
    assert "--base_model ./nowhere: not a local folder" in missing.err


@proves("single", "--lora_path", "--lora_rank")
def test_adapters(adapters: Adapters) -> None:
    """File and folder answer alike and unlike the base model; the rank, if given, must be that of the weights."""
    short = [*EXACT, "--max_new_tokens", 8, "--patch_rope"]
    runs = [generate(*short, "--lora_path", path) for path in (adapters.pth, adapters.folder)]
    assert runs[0].code == 0
    assert runs[0].out == runs[1].out != " 26\n"
    wrong = generate("--lora_path", adapters.rank_4, "--lora_rank", 8)
    assert wrong.code == 1
    assert "its rank is 4, but rank 8 was asked for; pass --lora_rank 4" in wrong.err
    for rank in ([], ["--lora_rank", 4]):
        assert generate("--lora_path", adapters.rank_4, *rank, "--max_new_tokens", 1).code == 0


@proves("single", "--rope_2d_ratio", "--no_patch_rope")
def test_rope(adapters: Adapters) -> None:
    """With an adapter half of the pairs turn by branch, or the share given; with --no_patch_rope none do."""

    def pairs(*flags: object) -> int | None:
        run = generate("--lora_path", adapters.pth, "--max_new_tokens", 1, *flags)
        patch = find_rope_patch(run.engines[0].model)
        return None if patch is None else len(patch.pair_indices)

    assert pairs() == 16
    assert pairs("--rope_2d_ratio", 0.125) == 4
    assert pairs("--no_patch_rope") is None


@proves("single", "--device")
def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda is refused where no GPU is; without the flag the CPU is taken, and a line says so."""
    machine_with_gpus(monkeypatch, 0)
    assert "torch sees no GPU; use --device cpu" in generate(device="cuda").err
    default = generate(*EXACT, device=None)
    assert default.out == " 26\n"
    assert "no GPU found and no --device given: running on the CPU" in default.err
    assert "no GPU found" not in generate(*EXACT, device="cpu").err


@pytest.mark.half_precision
@proves("single", "--dtype")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype(dtype: str) -> None:
    """The weights are loaded in the type that was asked for."""
    with watched_loading() as loaded:
        assert generate("--max_new_tokens", 1, "--dtype", dtype).code == 0
    assert loaded[0]["loaded_dtype"] == getattr(torch, dtype)


@proves("single", "--max_new_tokens", "--temperature", "--top_p", "--top_k", "--repetition_penalty")
def test_sampling() -> None:
    """A high temperature changes the answer, a top_k of 1 and a tiny top_p change it back; a penalty forbids it."""
    assert generate(*HOT, "--top_p", 1, "--top_k", 0).out != " 26\n"
    assert generate(*HOT, "--top_p", 1, "--top_k", 1).out == " 26\n"
    assert generate(*HOT, "--top_p", 1e-6, "--top_k", 0).out == " 26\n"
    # 26 stands in the story.
    assert "26" not in generate("--temperature", 0, "--repetition_penalty", 1000, "--max_new_tokens", 4).out
    long = generate(*EXACT, "--ignore_eos", "--max_new_tokens", 3).engines[0].events[-1].result
    assert long is not None
    assert len(long.token_ids) == 3


@proves("single", "User: and Assistant:", "history", "quit, exit, Ctrl-D")
def test_chat() -> None:
    """Two replies, the second to the whole conversation; the end of the input (Ctrl-D) ends it, as quit and exit do."""
    run = chat("My name is Dan.", "Who am I?", flags=[*EXACT, "--max_new_tokens", 8, "--ignore_eos"])
    assert run.code == 0
    assert run.out.count("User: Assistant: ") == 2
    [engine] = run.engines
    assert len(engine.requests) == 2
    second = [event.result for event in engine.events if event.result is not None and event.request_index == 0]
    assert len(second) == 2
    shown = run.out.split("Assistant: ")[1].split("\n")[0]
    asked = decoded(engine.requests[1])
    assert "My name is Dan." in asked
    assert shown.strip()
    assert shown in asked
    assert asked.index("My name is Dan.") < asked.index("Who am I?")
    for word in ("quit", "exit", "EXIT"):
        ended = chat(word, "never read")
        assert ended.code == 0
        assert ended.out == "User: 再见！\n"


@proves("single", "User: and Assistant:")
def test_the_reply_is_streamed() -> None:
    """The beginning of a reply is printed before its end is known."""
    ended_at_write: list[bool] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            ended_at_write.append(any(event.result is not None for event in engines[0].events) if engines else False)
            return super().write(text)

    flags = ["--base_model", "tiny", *ON_CPU, "--ignore_eos", "--max_new_tokens", "30", "--temperature", "0"]
    out = Out()
    with (
        command_line("inference_hf_lora.py", stdin="hello\n"),
        watched_engines() as engines,
        contextlib.redirect_stdout(out),
    ):
        assert inference_hf_lora.main(flags) == 0
    assert out.getvalue().startswith("User: Assistant: ")
    assert ended_at_write.index(True) > 10


@proves("single", "--load_in_8bit", "--load_in_4bit")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes the error names the command that installs it; with it transformers is asked for them."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    refused = generate(f"--load_in_{bits}")
    assert refused.code == 1
    assert "bitsandbytes, which is not installed; run: pip install 'parallelmind[quant]'" in refused.err
    monkeypatch.undo()
    with watched_loading() as loaded:
        assert generate(f"--load_in_{bits}", *EXACT).out == " 26\n"
    config = loaded[0]["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == "8bit", bits == "4bit")
    both = generate("--load_in_8bit", "--load_in_4bit")
    assert "--load_in_8bit and --load_in_4bit exclude each other" in both.err


@proves("single", '--device_map auto / device_map="auto"')
def test_device_map() -> None:
    """transformers and accelerate place the model, by the flag and by the Python argument; the answer is the same."""
    with watched_loading() as loaded:
        assert generate("--device_map", "auto", *EXACT, device=None).out == " 26\n"
        inference_hf_lora.load_model_with_lora("tiny", device_map="auto")
    assert [settings["device_map"] for settings in loaded] == ["auto", "auto"]


@proves("single", "a model with no rotary embedding")
def test_no_rotary_embedding(tmp_path: Path) -> None:
    """GPT-2 with 2D RoPE is refused with the flag that helps, and runs with that flag."""
    tiny_model("gpt2").save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    flags = ["--mode", "generate", "--prompt", "abc", "--base_model", tmp_path, "--max_new_tokens", 1]
    refused = script(*flags, "--patch_rope")
    assert refused.code == 1
    assert "The model has no rotary position embedding" in refused.err
    assert "Run it with --no_patch_rope" in refused.err
    assert script(*flags, "--no_patch_rope").code == 0


@proves("presets", *(f"--preset {name}" for name in RANGES))
@pytest.mark.parametrize("name", RANGES)
def test_presets(name: str) -> None:
    """The engine is asked for values in the documented ranges, and a flag beside the preset overrides it."""
    run = generate("--preset", name, "--max_new_tokens", 1)
    [sampling] = run.engines[0].sampling
    values = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty)
    for value, (low, high) in zip(values, RANGES[name], strict=True):
        assert low <= value <= high
    [changed] = generate("--preset", name, "--top_k", 3, "--max_new_tokens", 1).engines[0].sampling
    assert (changed.top_k, changed.temperature) == (3, sampling.temperature)


@proves("single", "python scripts/inference_hf_lora.py --mode chat", "quit, exit, Ctrl-D")
def test_the_script_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script answers what is typed, and ends."""
    line = "python scripts/inference_hf_lora.py --base_model tiny --mode chat"
    typed = f"/main {STORY}{QUESTIONS[1]}\nquit\nnever read\n"
    run_script(line, *ON_CPU, *EXACT, cwd=link_checkout(tmp_path), stdin=typed)
    assert capsys.readouterr().out.endswith(f"\nUser: Assistant:{ANSWERS[1]}\nUser: 再见！\n")


@proves("single", "python scripts/inference_hf_lora.py --mode generate", "--prompt")
def test_the_script_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script prints the completion and nothing else."""
    line = "python scripts/inference_hf_lora.py --base_model tiny --mode generate"
    run_script(line, *ON_CPU, *EXACT, "--prompt", PROMPT, cwd=link_checkout(tmp_path))
    assert capsys.readouterr().out == " 26\n"


def decoded(request: Any) -> str:
    """What the engine was asked to continue, as text."""
    tokenizer = loader.AutoTokenizer.from_pretrained(bundled_model_path())
    assert not request.branches
    text: str = tokenizer.decode(request.main)
    return text


@proves("single", "python parallel_generate.py")
def test_parallel_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a checkout, as written: each branch has its answer."""
    line = "python parallel_generate.py --base_model tiny --prompt -"
    branches = [word for question in QUESTIONS for word in ("--branch", question)]
    run_script(line, *branches, *ON_CPU, *EXACT, cwd=link_checkout(tmp_path), stdin=STORY)
    expected = [line.strip() for pair in zip(QUESTIONS, ANSWERS, strict=True) for line in pair]
    assert [line.partition("] ")[2] or line for line in capsys.readouterr().out.splitlines()] == expected
