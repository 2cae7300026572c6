import importlib
import io
import json
import logging
import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parallelmind.cli.main import main
from parallelmind.cli.progress import BarProgress, LogProgress
from tests.cli.batch_runs import arguments, rows
from tests.fake_engine import FakeEngine, loaded_instead

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "scripts" / "parallel_inference_hf_lora.py"


def test_the_log_reconciles_records_and_answers(
    data: Path, out: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_text(data.read_text() + '\n{"main": 3}\n')
    engine.fails = lambda prompt: bytes(prompt) == b"b0.1"
    assert main(arguments(data, out)) == 0
    log = capsys.readouterr().err
    assert "loaded 13 records (数据集加载完成) from" in log
    assert "(blank lines skipped: 1)" in log
    assert "13 records loaded = 11 answered + 2 failed; 59 generations finished (生成完成), 2 error rows" in log
    assert "failed: line 1: it broke; mend it" in log
    assert 'failed: line 14 has no "branches"' in log
    assert "tokens/s" in log
    assert all(" rank=0 " in line for line in log.splitlines())
    assert len(rows(out)) == 61


def test_the_same_start_again_says_complete(
    data: Path, out: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(data, out))
    requests = len(engine.requests)
    assert main(arguments(data, out)) == 0
    assert "is complete already" in capsys.readouterr().err
    assert len(engine.requests) == requests
    assert main(arguments(data, out, "--seed", 1)) == 0
    said = capsys.readouterr().err
    assert "seed was 0, is now 1" in said
    assert f"answers are in {out.with_name('out_2.jsonl')}" in said
    assert main(arguments(data, out, "--seed", 1, "--overwrite")) == 0
    assert f"answers are in {out}\n" in capsys.readouterr().err


def test_what_only_spells_out_a_default_continues_the_job(
    data: Path, out: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter.pth"
    adapter.write_bytes(b"weights")
    equal: list[list[list[str]]] = [
        [[], ["--no_patch_rope"], ["--rope_2d_ratio", "0.3"], ["--branch_stride", "9"], ["--visibility", "isolated"]],
        [
            ["--lora_path", str(adapter)],
            ["--lora_path", str(adapter), "--patch_rope", "--rope_2d_ratio", "0.5", "--lora_rank", "8"],
            ["--lora_path", str(adapter), "--branch_stride", "128", "--rope_2d_mode", "split"],
        ],
        [
            ["--max_branches_per_sample", "8", "--min_branches_per_sample", "1"],
            ["--max_branches_per_sample", "8", "--branches_per_sample", "3"],
            ["--max_branches_per_sample", "8", "--max_samples", "1000000"],
        ],
    ]
    for number, spelled in enumerate(equal, start=1):
        for place, flags in enumerate(spelled):
            capsys.readouterr()
            assert main(arguments(data, out, *flags)) == 0
            said = capsys.readouterr().err
            assert ("is complete already" in said) == (place > 0), flags
            assert f"answers are in {out if number == 1 else out.with_name(f'out_{number}.jsonl')}\n" in said


def test_a_job_that_was_begun_before_there_was_a_setting_has_its_default(
    data: Path, out: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, out, "--temperature", 0.5)) == 0
    with sqlite3.connect(f"{out}.job/ledger.sqlite") as ledger:
        settings = json.loads(ledger.execute("SELECT settings FROM job").fetchone()[0])
        del settings["min_p"], settings["repetition_penalty"]
        ledger.execute("UPDATE job SET settings = ?", (json.dumps(settings),))
    capsys.readouterr()
    assert main(arguments(data, out, "--temperature", 0.5)) == 0
    assert "is complete already" in capsys.readouterr().err
    assert main(arguments(data, out, "--temperature", 0.5, "--min_p", 0.1)) == 0
    assert "min_p was 0.0, is now 0.1" in capsys.readouterr().err


def test_an_error_is_one_line_and_a_traceback_only_with_debug(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.jsonl"
    assert main(arguments(missing, out)) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(
        f"error: the input {missing} does not exist; --data_path takes a JSONL file with rows such as "
    )
    assert main(arguments(missing, out, "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--branches_per_sampel", "3"],
            "unknown flag --branches_per_sampel; did you mean --branches_per_sample?",
        ),
        (["--batch-sizes=3"], "unknown flag --batch-sizes; did you mean --batch_size?"),
        (["--zzz"], "unknown flag --zzz (see"),
        (["--batch", "3"], "unknown flag --batch; did you mean --batch_size?"),
        (["-x"], "unknown flag -x"),
        (["stray"], "unexpected argument 'stray'"),
        (["--batch_size", "many"], "--batch_size is 'many'; it must be a whole number, 1 or more."),
        (["--visibility", "all"], "--visibility is 'all'; it must be one of isolated, columnar, strict."),
        (["--patch_rope", "--no_patch_rope"], "not allowed with argument --patch_rope"),
    ],
)
def test_wrong_usage_is_one_line(
    data: Path, out: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments(data, out, *given))
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_misspelled_required_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "--data_pth", "x"])
    assert "unknown flag --data_pth; did you mean --data_path?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bacth"])
    assert "'bacth'" in capsys.readouterr().err


def test_a_value_out_of_range_is_an_error_that_names_the_flag(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--batch_size", "--log_interval"):
        assert main(arguments(data, out, flag, "-1")) == 1
        assert f"error: {flag} is -1" in capsys.readouterr().err
    assert not out.with_name("out.jsonl.job").exists()


def test_hyphens_are_accepted_in_flags_and_kept_in_values(data: Path, out: Path, engine: FakeEngine) -> None:
    hyphened = ["batch", "--base-model", "m-1", "--data-path", str(data), f"--out-path={out}", "--workers=0"]
    assert main([*hyphened, "--max-samples", "2", "--stop", "--- end", "--stop=--max-samples"]) == 0
    assert engine.sampling
    assert engine.sampling.stop == ("--- end", "--max-samples")
    assert len(rows(out)) == 10


def test_interrupts_have_their_exit_codes_and_leave_a_job_to_continue(
    data: Path, out: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (sent, code) in enumerate([(signal.SIGINT, 130), (signal.SIGTERM, 143)], start=4):
        engine.on_request = lambda current, number=number, sent=sent: (
            os.kill(os.getpid(), sent) if current == number else None
        )
        assert main(arguments(data, out)) == code
        *_, kept, last = capsys.readouterr().err.splitlines()
        assert kept.endswith("what is done is kept: the same command continues where it was")
        assert last == "interrupted"
    engine.on_request = lambda current: None
    assert main(arguments(data, out)) == 0
    assert len(rows(out)) == 60
    assert re.search(r"continuing: \d of 12 records have results", capsys.readouterr().err)


def test_out_of_memory_says_what_to_do(
    data: Path, out: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def fill_memory(number: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.on_request = fill_memory
    assert main(arguments(data, out)) == 1
    assert "error: out of memory with --batch_size 16; start the same command with" in capsys.readouterr().err
    engine.on_request = lambda number: None
    assert main(arguments(data, out, "--batch_size", 2)) == 0


class StopError(Exception):
    """Ends a run once the call of interest was seen."""


@pytest.fixture
def loading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine is loaded with."""
    seen: dict[str, Any] = {}

    def stop(settings: dict[str, Any]) -> FakeEngine:
        seen.update(settings)
        raise StopError

    loaded_instead(request, monkeypatch, stop)
    return seen


def test_defaults_leave_the_adapter_its_say(data: Path, out: Path, loading: dict[str, Any]) -> None:
    with pytest.raises(StopError):
        main(arguments(data, out))
    undecided = "lora_path lora_rank rope_2d_ratio patch_rope rope_2d_mode rope_2d_pairs branch_stride"
    undecided += " branch_range visibility"
    assert loading == dict.fromkeys([*undecided.split(), "device", "device_map", "deterministic", "kv_cache_bytes"]) | {
        "base_model": "m",
        "dtype": "bfloat16",
        "load_in_8bit": False,
        "load_in_4bit": False,
        "max_running_branches": 16,
        "max_running_requests": None,
        "prefix_cache_bytes": 2**29,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--lora_path", __file__], {"lora_path": __file__}),  # read by nobody here
        (["--lora_rank", "4"], {"lora_rank": 4}),
        (["--patch_rope"], {"patch_rope": True}),
        (["--no_patch_rope"], {"patch_rope": False}),
        (["--rope_2d_ratio", "0.25"], {"rope_2d_ratio": 0.25}),
        (["--rope_2d_mode", "additive"], {"rope_2d_mode": "additive"}),
        (["--rope_2d_pairs", "interleaved"], {"rope_2d_pairs": "interleaved"}),
        (["--branch_stride", "32"], {"branch_stride": 32}),
        (["--visibility", "strict"], {"visibility": "strict"}),
        (["--device", "cpu"], {"device": "cpu"}),
        (["--dtype", "float32"], {"dtype": "float32"}),
        (["--load_in_4bit"], {"load_in_4bit": True}),
        (["--load_in_8bit"], {"load_in_8bit": True}),
        (["--device_map", "auto"], {"device_map": "auto"}),
        (["--batch_size", "5"], {"max_running_branches": 5, "max_running_requests": None}),
        (["--kv_cache_gb", "0.5"], {"kv_cache_bytes": 2**29}),
        (
            ["--batch_size", "5", "--batch_by_samples"],
            {"max_running_branches": None, "max_running_requests": 5},
        ),
    ],
)
def test_flags_reach_the_model_and_the_engine(
    data: Path,
    out: Path,
    loading: dict[str, Any],
    given: list[str],
    expected: dict[str, Any],
) -> None:
    with pytest.raises(StopError):
        main(arguments(data, out, *given))
    assert {name: loading[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (["--max_new_tokens", "9"], "max_new_tokens", 9),
        (["--temperature", "0"], "temperature", 0.0),
        (["--top_p", "0.5"], "top_p", 0.5),
        (["--top_k", "7"], "top_k", 7),
        (["--min_p", "0.1"], "min_p", 0.1),
        (["--repetition_penalty", "1.2"], "repetition_penalty", 1.2),
        (["--stop", "a", "--stop", "\n"], "stop", ("a", "\n")),
        (["--ignore_eos"], "ignore_eos", True),
    ],
)
def test_flags_reach_the_sampling(
    data: Path, out: Path, engine: FakeEngine, given: list[str], name: str, expected: object
) -> None:
    defaults = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0}
    main(arguments(data, out))
    assert {key: getattr(engine.sampling, key) for key in defaults} == defaults
    main(arguments(data, out, *given, "--overwrite"))
    assert getattr(engine.sampling, name) == expected


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ([], [4, 1]),
        (["--branches_per_sample", "2"], [2, 2, 1]),
        (["--max_branches_per_sample", "4"], [3, 2]),
        (["--max_branches_per_sample", "0"], [4, 1]),
        (["--max_branches_per_sample", "4", "--max_total_tokens", "18"], [3, 2]),
        (["--max_branches_per_sample", "5", "--min_branches_per_sample", "2"], [5]),
        (["--max_total_tokens", "14"], [2, 2, 1]),
    ],
)
def test_flags_shape_the_rows(data: Path, out: Path, engine: FakeEngine, given: list[str], sizes: list[int]) -> None:
    main(arguments(data, out, "--max_samples", 1, *given))
    assert [len(request.branches) for request in engine.requests] == sizes


def test_retry_failed_and_seed_and_workers(data: Path, out: Path, engine: FakeEngine) -> None:
    engine.fails = lambda prompt: bytes(prompt) == b"b3.0"
    main(arguments(data, out, "--num_workers", 0))
    before = rows(out)
    assert [row["line"] for row in before if row["output"] is None] == [4]
    engine.fails = lambda prompt: False
    engine.requests.clear()
    main(arguments(data, out, "--retry_failed", "--num_workers", 3))
    assert {bytes(request.main) for request in engine.requests} == {b"main 3"}
    assert all(row["output"] for row in rows(out))
    main(arguments(data, out, "--seed", 3, "--overwrite"))
    assert not {row["output"] for row in rows(out)} & {row["output"] for row in before}


def test_progress_lines_come_at_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 1.0, 10.0, 11.0, 20.0])
    progress = LogProgress(10.0, clock=lambda: next(times))
    progress.start(total=30, done=10)
    with caplog.at_level(logging.INFO, logger="parallelmind.cli.progress"):
        for done in (11, 15, 16, 20):
            workers = {0: done - 14, 1: 4} if done < 20 else dict.fromkeys(range(8), 1) | {8: 0, 9: 12}
            progress.update(done=done, failed=1, generated_tokens=100 * done, by_worker=workers)
    assert [record.message for record in caplog.records] == [
        "15 of 30 records, 0.50 records/s, 150 tokens/s, 1 failed, time left 0:00:30; worker 0: 1, worker 1: 4",
        "20 of 30 records, 0.50 records/s, 100 tokens/s, 1 failed, time left 0:00:20; "
        "10 workers, from 0 (worker 8) to 12 (worker 9)",
    ]


def test_the_bar_ends_at_the_last_count() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = BarProgress(console)
    progress.start(total=30, done=10)
    for done in (11, 15, 30):
        progress.update(done=done, failed=2, generated_tokens=done, by_worker={0: done})
    progress.stop()
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().splitlines()[-2]
    assert "30/30" in last
    assert "2 failed" in last


def test_the_script_can_be_imported() -> None:
    """It runs nothing then."""
    assert importlib.import_module("scripts.parallel_inference_hf_lora").__doc__
