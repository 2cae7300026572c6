"""`parallel_inference_hf_lora.py`: every flag has its documented default and its effect."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from parallelmind.columnar import find_rope_patch
from parallelmind.models import loader
from parallelmind.models.identity import bundled_model_path
from tests.compatibility.command_lines import link_checkout, parsed, refusal, run_line, run_script
from tests.compatibility.conftest import Adapters
from tests.compatibility.contract import SECTIONS, proves
from tests.compatibility.inference_runs import (
    ANSWERS,
    QUESTIONS,
    RECORD,
    STORY,
    BatchRun,
    batch,
    watched_loading,
)
from tests.exact import ON_CPU
from tests.hub import put_on_hub
from tests.machines import machine_with_gpus

PAIRS = 32
"""Frequency pairs of the bundled model."""
NINE = {"main": STORY, "branches": [f"{question} " * (1 + n // 3) for n, question in enumerate(QUESTIONS * 3)]}
REQUIRED = {"--base_model": "m", "--data_path": "i", "--out_path": "o"}
BAD = [
    '{"main": "broken"',
    {"text": ""},
    {"text": "word " * 3000},
    {"main": "x", "branches": []},
    {"main": 3, "branches": ["a"]},
]


def rope(run: BatchRun) -> Any:
    return find_rope_patch(run.engine.model)


def words(flags: dict[str, str]) -> list[str]:
    return [word for pair in flags.items() for word in pair]


def prompt_lengths(request: Any) -> list[int]:
    return [len(branch.prompt) for branch in request.branches]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> BatchRun:
    """Both kinds of rows, and broken ones between them."""
    return batch(tmp_path_factory.mktemp("plain"), [RECORD, *BAD, {"text": STORY + QUESTIONS[0]}])


@proves(
    "batch",
    "--branches_per_sample",
    "--max_branches_per_sample",
    "--min_branches_per_sample",
    "--batch_by_samples",
    "--batch_size",
    "--max_total_tokens",
    "--max_new_tokens",
    "--temperature",
    "--top_p",
    "--dtype",
    "--num_workers",
    "--max_samples",
    "--lora_path",
)
def test_defaults() -> None:
    """The defaults of the parser are the documented ones."""
    documented = {
        "branches_per_sample": 4,
        "max_branches_per_sample": 0,
        "min_branches_per_sample": 1,
        "batch_by_samples": False,
        "batch_size": 16,
        "max_total_tokens": 0,
        "max_new_tokens": 512,
        "temperature": 0.7,
        "top_p": 0.9,
        "dtype": "bfloat16",
        "num_workers": 1,
        "max_samples": None,
        "lora_path": None,
    }
    assert parsed("batch", *words(REQUIRED)).items() >= documented.items()


@proves("batch", "--base_model", "--data_path", "--out_path")
@pytest.mark.parametrize("missing", REQUIRED)
def test_required_flags(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a required flag there is one line that names it, and exit code 2."""
    assert missing in refusal("batch", REQUIRED, missing, capsys)


@proves("batch", "--data_path", "--out_path", '{"main", "branches"}', '{"text"}', '{"input", "output"}')
def test_rows_in_and_out(plain: BatchRun) -> None:
    """Answers of both kinds of input rows, in input order; the input of a `text` row is the text."""
    assert plain.code == 0
    answers = [(row["input"], row["output"]) for row in plain.rows if "error" not in row]
    assert answers == [*zip(QUESTIONS, ANSWERS, strict=True), (STORY + QUESTIONS[0], ANSWERS[0])]
    assert [row["line"] for row in plain.rows] == [1, 1, 1, 2, 3, 4, 5, 6, 7]


@proves("batch", '{"input", "output": null, "error", "line"}')
def test_error_rows(plain: BatchRun) -> None:
    """Each bad record has an error row in its place, and the others are answered."""
    rows = [row for row in plain.rows if row["output"] is None]
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6]
    assert all(row.keys() == {"input", "output", "error", "line"} for row in rows)
    for row, words in zip(rows, ("not valid JSON", "is empty", "tokens", "is empty", "expected a text"), strict=True):
        assert words in row["error"]


@proves("batch", "loaded and finished", "rank=X")
def test_log(plain: BatchRun) -> None:
    """The log counts records and generations, and names each skipped record with its reason; each line has the rank."""
    assert "loaded 7 records (数据集加载完成) from" in plain.log
    assert "7 records loaded = 2 answered + 5 failed; 4 generations finished (生成完成), 5 error rows" in plain.log
    assert re.findall(r"failed: line (\d)", plain.log) == ["2", "3", "4", "5", "6"]
    lines = plain.log.splitlines()
    assert lines
    assert all(" rank=0 " in line for line in lines)


@proves("batch", "--base_model")
def test_base_model(tmp_path: Path, plain: BatchRun) -> None:
    """A folder is the model in it; any other name is asked of the Hub."""
    local = batch(tmp_path, [RECORD], "--base_model", bundled_model_path())
    assert local.rows == plain.rows[:3]
    put_on_hub("some-one/some-model", bundled_model_path())
    assert batch(tmp_path, [RECORD], "--base_model", "some-one/some-model").rows == plain.rows[:3]
    unknown = batch(tmp_path, [RECORD], "--base_model", "some-one/other")
    assert unknown.code == 1
    assert "--base_model some-one/other: not a local folder, and not loadable from the Hugging Face Hub" in unknown.log


@proves("batch", "--lora_path", "--lora_rank", "--patch_rope")
def test_adapters(tmp_path: Path, plain: BatchRun, adapters: Adapters) -> None:
    """A file, and a folder with the same weights and --patch_rope, answer alike, unlike the base model, at rank 8."""
    short = ["--max_new_tokens", 8]
    by_file = batch(tmp_path, [RECORD], *short, "--lora_path", adapters.pth)
    by_folder = batch(tmp_path, [RECORD], *short, "--lora_path", adapters.folder, "--patch_rope")
    assert by_file.code == by_folder.code == 0
    assert by_file.outputs == by_folder.outputs
    assert by_file.outputs != plain.outputs[:3]
    assert rope(by_file) is not None
    assert rope(by_folder) is not None


@proves("batch", "--lora_rank")
def test_lora_rank(tmp_path: Path, adapters: Adapters) -> None:
    """A `.pth` file of any rank loads by itself; a rank that is given must agree, else both are named."""
    four = ["--lora_path", adapters.rank_4, "--max_new_tokens", 1]
    assert batch(tmp_path, [RECORD], *four).code == 0
    assert batch(tmp_path, [RECORD], *four, "--lora_rank", 4).code == 0
    mismatch = batch(tmp_path, [RECORD], *four, "--lora_rank", 8)
    assert mismatch.code == 1
    assert re.search(r"rank is 4, but rank 8 was asked for.*--lora_rank 4", mismatch.log)
    wrong = batch(tmp_path, [RECORD], "--lora_path", adapters.folder, "--lora_rank", 16)
    assert wrong.code == 1
    assert re.search(r"rank is 8, but rank 16 was asked for", wrong.log)


@proves("batch", "--patch_rope", "--no_patch_rope")
def test_patch_rope(tmp_path: Path, plain: BatchRun, adapters: Adapters) -> None:
    """The model that decodes is patched or not; without an adapter and a flag it is not, and the log says why."""
    assert rope(plain) is None
    assert "2D RoPE is off: no adapter was given" in plain.log
    short = ["--max_new_tokens", 1]
    on = batch(tmp_path, [RECORD], "--patch_rope", *short)
    assert rope(on) is not None
    assert "2D RoPE is off" not in on.log
    assert rope(batch(tmp_path, [RECORD], "--lora_path", adapters.pth, "--no_patch_rope", *short)) is None
    both = batch(tmp_path, [RECORD], "--patch_rope", "--no_patch_rope")
    assert both.code == 2
    assert "not allowed with" in both.log


@proves("batch", "--rope_2d_ratio")
@pytest.mark.parametrize(("flags", "share"), [([], 0.5), (["--rope_2d_ratio", 0.25], 0.25), (["--rope_2d_ratio=1"], 1)])
def test_rope_2d_ratio(tmp_path: Path, flags: list[object], share: float) -> None:
    """Half of the frequency pairs turn by branch position, or the share that the flag gives."""
    run = batch(tmp_path, [RECORD], "--patch_rope", "--max_new_tokens", 2, *flags)
    assert len(rope(run).pair_indices) == share * PAIRS


@proves("batch", "--branch_stride")
@pytest.mark.parametrize(("flags", "stride"), [([], 128), (["--branch_stride", 5], 5)])
def test_branch_stride(tmp_path: Path, flags: list[object], stride: int) -> None:
    """The model sees branch positions of branch id × stride, also where the branches are split over rows."""
    run = batch(tmp_path, [NINE], "--patch_rope", "--max_new_tokens", 2, *flags)
    assert run.engine.branch_positions == {stride * branch for branch in range(10)}


@proves("batch", "--branches_per_sample", "--max_branches_per_sample", "--min_branches_per_sample")
def test_rows(tmp_path: Path) -> None:
    """Branches in each row of a record with nine of them: fixed mode fills rows, dynamic mode balances them."""

    def rows(*flags: object) -> list[int]:
        run = batch(tmp_path, [NINE], "--max_new_tokens", 1, *flags)
        assert [row["branch"] for row in run.rows] == list(range(9))
        return run.engine.rows

    assert rows() == [4, 4, 1]
    assert rows("--branches_per_sample", 3) == [3, 3, 3]
    assert rows("--max_branches_per_sample", 4) == [3, 3, 3]
    assert rows("--max_branches_per_sample", 5) == [5, 4]


@proves("batch", "--min_branches_per_sample")
def test_least_branches(tmp_path: Path) -> None:
    """Where a token limit leaves a choice, dynamic mode takes more rows rather than one with too few branches."""
    prompt_tokens = [3, 1, 2, 1, 3, 4, 6, 1, 1, 1, 1, 6]
    record = {"main": "Story:", "branches": [" hat" * tokens for tokens in prompt_tokens]}
    free = batch(tmp_path, [record], "--max_new_tokens", 1)
    assert [prompt for request in free.engine.requests for prompt in prompt_lengths(request)] == prompt_tokens
    limit = len(free.engine.requests[0].main) + 10
    dynamic = ["--max_branches_per_sample", 5, "--max_total_tokens", limit, "--max_new_tokens", 1]
    assert batch(tmp_path, [record], *dynamic).engine.rows == [5, 2, 5]
    assert batch(tmp_path, [record], *dynamic, "--min_branches_per_sample", 3).engine.rows == [3, 3, 3, 3]
    fixed = batch(tmp_path, [record], "--min_branches_per_sample", 3)
    assert fixed.code == 1
    assert "--min_branches_per_sample 3 is for dynamic mode; give --max_branches_per_sample too" in fixed.log


@proves("batch", "--max_total_tokens")
def test_max_total_tokens(tmp_path: Path) -> None:
    """Rows are split so that main and prompts keep to the limit; a branch that cannot has an error row."""
    free = batch(tmp_path, [NINE], "--max_new_tokens", 1)
    main = len(free.engine.requests[0].main)
    tokens = [main + sum(prompt_lengths(request)) for request in free.engine.requests]
    limit = max(tokens) - 1
    run = batch(tmp_path, [NINE], "--max_new_tokens", 1, "--max_total_tokens", limit)
    assert free.engine.rows == [4, 4, 1]
    assert run.engine.rows != free.engine.rows
    assert all(main + sum(prompt_lengths(request)) <= limit for request in run.engine.requests)
    assert all(row["output"] is not None for row in run.rows)
    small = batch(tmp_path, [NINE], "--max_new_tokens", 1, "--max_total_tokens", main + 8)
    refused = [row for row in small.rows if row["output"] is None]
    assert 0 < len(refused) < 9
    assert all(f"above --max_total_tokens {main + 8}" in row["error"] for row in refused)


@proves("batch", "--batch_size", "--batch_by_samples")
def test_batch_size(tmp_path: Path) -> None:
    """That many branches are decoded at once, or the branches of that many rows."""
    records = [{"main": STORY, "branches": ["How old is Dan?"] * 4}] * 5

    def at_once(*flags: object) -> int:
        run = batch(tmp_path, records, "--max_new_tokens", 3, "--ignore_eos", *flags)
        assert len(run.rows) == 20
        return run.engine.most_at_once

    assert at_once() == 16
    assert at_once("--batch_size", 3) == 3
    assert at_once("--batch_size", 3, "--batch_by_samples") == 12
    assert at_once("--batch_by_samples") == 20


@proves("batch", "--max_new_tokens")
def test_max_new_tokens(tmp_path: Path) -> None:
    """No answer has more tokens, and one that would go on ends there."""
    run = batch(tmp_path, [RECORD], "--max_new_tokens", 5, "--ignore_eos")
    assert [(row["output_tokens"], row["finish_reason"]) for row in run.rows] == [(5, "length")] * 3


@proves("batch", "--temperature", "--top_p")
def test_sampling(tmp_path: Path, plain: BatchRun) -> None:
    """Temperature 0 gives the likeliest tokens, a high one gives others, and a tiny top_p undoes that."""
    hot = batch(tmp_path, [RECORD], "--temperature", 50, "--top_p", 1, "--max_new_tokens", 8)
    assert plain.outputs[:3] == ANSWERS
    assert not set(hot.outputs) & set(ANSWERS)
    assert batch(tmp_path, [RECORD], "--temperature", 50, "--top_p", 1e-6).outputs == ANSWERS


@proves("batch", "--device")
def test_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU `cuda` is refused, and no flag means the CPU and a line that says so; with one it means cuda."""
    machine_with_gpus(monkeypatch, 0)
    refused = batch(tmp_path, [RECORD], device="cuda")
    assert refused.code == 1
    assert "--device is 'cuda', but torch sees no GPU; use --device cpu" in refused.log
    said = "no GPU found and no --device given: running on the CPU"
    default = batch(tmp_path, [RECORD], device=None)
    assert default.outputs == ANSWERS
    assert default.engine.model.device.type == "cpu"
    assert said in default.log
    assert said not in batch(tmp_path, [RECORD], device="cpu").log
    machine_with_gpus(monkeypatch, 1)
    assert loader.resolve_device(None) == ("cuda", None)


@pytest.mark.half_precision
@proves("batch", "--dtype")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    """The weights are loaded in the type that was asked for."""
    with watched_loading() as loaded:
        assert batch(tmp_path, [RECORD], "--dtype", dtype).code == 0
    assert [settings["loaded_dtype"] for settings in loaded] == [getattr(torch, dtype)]


@proves("batch", "--num_workers")
@pytest.mark.parametrize(("flags", "threads"), [([], 1), (["--num_workers", 3], 3), (["--num_workers", 0], 0)])
def test_num_workers(tmp_path: Path, flags: list[object], threads: int) -> None:
    """That many threads read ahead and tokenise; with 0 the main one does it; the answers are the same."""

    def ahead() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")}

    # Each of these takes a thread so long that the next ones are begun meanwhile, and the last record is not read yet
    # when the first one is answered.
    records = [RECORD, *[{"text": "word " * 8_000}] * 4, RECORD]
    seen: set[str] = set()
    watch = register_module_forward_pre_hook(lambda *_: seen.update(ahead()))
    try:
        run = batch(tmp_path, records, *flags, "--batch_size", 1)
    finally:
        watch.remove()
    assert run.outputs == ANSWERS + [None] * 4 + ANSWERS
    assert len(seen) == threads
    assert not ahead()


@proves("batch", "--max_samples")
def test_max_samples(tmp_path: Path) -> None:
    """The first N records and no more are read."""
    run = batch(tmp_path, [RECORD, {"text": "a"}, "broken"], "--max_samples", 2, "--max_new_tokens", 1)
    assert [row["line"] for row in run.rows] == [1, 1, 1, 2]
    assert "2 records loaded = 2 answered + 0 failed" in run.log


@proves("batch", "--batch-size")
def test_hyphens(tmp_path: Path, plain: BatchRun) -> None:
    """Each flag of this table, spelled with hyphens, is understood as the same flag, and has its effect."""
    samples = {"--dtype": "float16", "--rope_2d_ratio": "0.25", "--temperature": "0.25", "--top_p": "0.25"}
    switches = ("--patch_rope", "--no_patch_rope", "--batch_by_samples")
    for flag in (name for name in SECTIONS["batch"].names() if name.startswith("--") and name != "--batch-size"):
        given = [] if flag in switches else [samples.get(flag, "3")]
        others = words({name: value for name, value in REQUIRED.items() if name != flag})
        spelled = parsed("batch", *others, flag.replace("_", "-"), *given)
        assert spelled == parsed("batch", *others, flag, *given)
        assert flag in REQUIRED or spelled != parsed("batch", *words(REQUIRED))
    run = batch(tmp_path, [RECORD], "--batch-size", 2, "--batch-by-samples", "--max-new-tokens=512")
    assert run.rows == plain.rows[:3]
    assert run.engine.settings["max_running_requests"] == 2


@proves("batch", "python scripts/parallel_inference_hf_lora.py")
def test_the_script(tmp_path: Path, plain: BatchRun, capsys: pytest.CaptureFixture[str]) -> None:
    """The script writes what the command writes."""
    link_checkout(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    line = "python scripts/parallel_inference_hf_lora.py --base_model tiny --data_path in.jsonl --out_path out.jsonl"
    run_script(line, *ON_CPU, "--temperature", 0, "--workers", 0, cwd=tmp_path)
    assert read_rows(tmp_path / "out.jsonl") == plain.rows[:3]
    said = capsys.readouterr().err
    assert "1 records loaded = 1 answered + 0 failed; 3 generations finished (生成完成), 0 error rows" in said


@proves("batch", "torchrun --nproc_per_node N scripts/parallel_inference_hf_lora.py", "rank=X", '{"input", "output"}')
def test_torchrun(tmp_path: Path) -> None:
    """Two ranks load the model, both log with their rank, and one file has all answers in input order."""
    link_checkout(tmp_path)
    records = [{"main": STORY, "branches": [f"{n}: {question}" for question in QUESTIONS]} for n in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    line = (
        "torchrun --nproc_per_node 2 scripts/parallel_inference_hf_lora.py --base_model tiny "
        "--data_path in.jsonl --out_path out.jsonl --max_new_tokens 12 --ignore_eos"
    )
    log = run_line(line, *ON_CPU, cwd=tmp_path).stderr
    assert "rank=0 INFO loading tiny" in log
    assert "rank=1 INFO loading tiny" in log
    assert log.count("40 records loaded = 40 answered + 0 failed; 120 generations finished (生成完成)") == 1
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["input"] for row in rows] == [text for record in records for text in record["branches"]]
    assert all(row["output_tokens"] == 12 for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
