"""The batch command on real models, killed and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from parallelmind.models.identity import bundled_model_path
from tests.cases import few
from tests.cli.batch_runs import arguments, rows
from tests.jobs.ledgers import ask, stored_results
from tests.random_model import save_random_model

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "scripts" / "parallel_inference_hf_lora.py"
GREEDY = ["--temperature", "0", "--dtype", "float32", "--device", "cpu", "--max_new_tokens", "16"]
# A draw may hang on rounding, which the batch changes.
MANY = 40
SHORT = [*GREEDY, "--max_new_tokens", "6", "--ignore_eos", "--batch_size", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


def test_a_real_model_answers_every_kind_of_row(data: Path, out: Path, model: Path) -> None:
    lines = [
        '{"main": "shared", "branches": ["one", "two", {"prompt": "three"}, "", "five"], "id": 7}',
        '{"text": "早上好"}',
        '{"main": "", "branches": ["alone", "too"]}',
        '{"main": "broken"',
        json.dumps({"text": "x" * 300}),
        json.dumps({"main": "m" * 200, "branches": ["short", "y" * 100]}),
    ]
    data.write_text("\n".join(lines) + "\n")
    assert main(arguments(data, out, *GREEDY, "--ignore_eos", model=model)) == 0
    found = [(row["line"], row.get("branch"), row["output"] is not None) for row in rows(out)]
    assert found == [
        *((1, branch, True) for branch in range(5)),
        (2, 0, True),
        (3, 0, True),
        (3, 1, True),
        (4, None, False),
        (5, None, False),
        (6, 0, True),
        (6, 1, False),
    ]
    assert all(row["output_tokens"] == 16 for row in rows(out) if row["output"] is not None)


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_real_answers_do_not_depend_on_batching(
    data: Path, out: Path, model: Path, tmp_path: Path, temperature: str
) -> None:
    some = data.read_text().splitlines()[:3]
    data.write_text("\n".join([*some, '{"text": "one"}', '{"text": "one"}']))
    other = tmp_path / "other.jsonl"
    settings = [*GREEDY, "--temperature", temperature]
    assert main(arguments(data, out, *settings, model=model)) == 0
    assert main(arguments(data, other, *settings, "--batch_size", 1, "--num_workers", 0, model=model)) == 0
    assert out.read_text() == other.read_text()
    assert (rows(out)[-1]["output"] == rows(out)[-2]["output"]) == (temperature == "0")


@pytest.mark.skipif(not bundled_model_path().exists(), reason="the bundled model is not there")
def test_the_bundled_model_answers(data: Path, out: Path) -> None:
    assert main(arguments(data, out, *GREEDY, model="tiny")) == 0
    assert [row["input"] for row in rows(out)] == [f"b{n}.{k}" for n in range(12) for k in range(5)]
    assert all(row["output"] is not None for row in rows(out))


def make_many(data: Path) -> None:
    """So many that a run is not at its end before the test sees its first result."""
    records = [{"main": f"main {n}", "branches": ["b", "c"]} for n in range(MANY)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The answers to many records."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    data, out = folder / "in.jsonl", folder / "out.jsonl"
    make_many(data)
    assert main(arguments(data, out, *SHORT, model=model)) == 0
    return out.read_bytes()


def wait_for_results(process: subprocess.Popen[str], out: Path) -> None:
    """Until the first record of a running job has its result."""
    while process.poll() is None and not stored_results(out):
        time.sleep(0.02)


def test_a_killed_run_of_the_script_ends_as_an_uninterrupted_run(
    data: Path, out: Path, model: Path, uninterrupted: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_many(data)
    # From another folder, and without the package on the path.
    command = [sys.executable, str(SCRIPT), *arguments(data, out, *SHORT, model=model)[1:]]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_results(process, out)
    process.kill()
    _, log = process.communicate()
    assert process.returncode == -signal.SIGKILL, log
    assert not out.exists()
    assert main(arguments(data, out, *SHORT, model=model)) == 0
    assert re.search(rf"continuing: \d+ of {MANY} records have results", capsys.readouterr().err)
    assert out.read_bytes() == uninterrupted
    assert main(arguments(data, out, *SHORT, model=model)) == 0
    assert "is complete already" in capsys.readouterr().err


@pytest.mark.parametrize(("sent", "code", "workers"), few([(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)]))
def test_an_interrupted_run_with_workers_ends_them_and_continues(
    data: Path,
    out: Path,
    model: Path,
    uninterrupted: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    sent: signal.Signals,
    code: int,
    workers: int,
) -> None:
    """With as many workers as before, and without any."""
    make_many(data)
    given = arguments(data, out, *SHORT, model=model)
    command = [sys.executable, str(SCRIPT), *given[1:], "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for_results(process, out)
    process.send_signal(sent)
    _, log = process.communicate(timeout=300)
    assert process.returncode == code, log
    assert "what is done is kept: the same command continues where it was" in log
    assert not out.exists()
    assert not ask(out, "SELECT * FROM leases UNION SELECT 0, 0, 0, record FROM quarantine")  # no record is to blame
    capfd.readouterr()
    assert main([*given, "--workers", str(workers)]) == 0
    assert re.search(rf"continuing: \d+ of {MANY} records have results", capfd.readouterr().err)
    assert out.read_bytes() == uninterrupted
