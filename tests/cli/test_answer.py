"""The answer command and the documented scripts around it, as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parallelmind.cli.main import main
from parallelmind.cli.statistics import _rate
from parallelmind.jobs.statistics import WorkerStatistics
from tests import fake_openai
from tests.fake_openai import KEY, FakeOpenAI
from tests.tasks.answering import PLAIN, context_row, everything_written, read_rows, story_rows, write_rows

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "utils" / "RAGutils" / "queryResultByInfer"
SCRIPT = FOLDER / "multi_worker_inference.py"
BACKEND = """
from parallelmind import QueryBasedInference

class Upper(QueryBasedInference):
    def generate_answer(self, query, context, retrieval_method):
        return query.upper()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "contexts.jsonl", story_rows(stories=2))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def on_tiny(tmp_path: Path) -> list[str]:
    template = tmp_path / "plain.yaml"
    template.write_text(PLAIN)
    return ["--prompt_template", str(template), "--temperature", "0", "--max_new_tokens", "8", "--dtype", "float32"]


@pytest.fixture
def on_upper(tmp_path: Path) -> list[str]:
    code = tmp_path / "upper.py"
    code.write_text(BACKEND)
    return ["--backend", f"{code}:Upper"]


def arguments(data: Path | str, out: Path | str, *more: object) -> list[str]:
    return ["answer", "--contexts_file", str(data), "--output_file", str(out), *map(str, more)]


def start(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


LABELS = [
    "Total contexts processed", "Successful inferences", "Errors", "Success rate", "Average inference time",
    "Results saved to",
]  # fmt: skip


def blocks(stdout: str) -> dict[str, dict[str, str]]:
    """The statistics blocks, by title."""
    found: dict[str, dict[str, str]] = {}
    for title, body in re.findall(r"^(.* STATISTICS.*)\n={60}\n((?:.+: .*\n)*)", stdout, re.M):
        found[title] = dict(line.split(": ", maxsplit=1) for line in body.splitlines()[: len(LABELS)])
        assert list(found[title]) == LABELS
    return found


def check_blocks(stdout: str, *, workers: int, records: int, out: Path) -> None:
    """Each worker's block counts the rows of its own file; together they are the total."""
    found = blocks(stdout)
    titles = [f"Worker {rank} INFERENCE STATISTICS" for rank in range(workers)]
    assert list(found) == [*titles, f"TOTAL INFERENCE STATISTICS ({workers} workers)"]
    total = found.pop(f"TOTAL INFERENCE STATISTICS ({workers} workers)")
    assert (total["Total contexts processed"], total["Errors"]) == (str(records), "0")
    assert (total["Success rate"], total["Results saved to"]) == ("100.0%", str(out))
    for rank, block in enumerate(found.values()):
        count, own = int(block["Total contexts processed"]), out.with_name(f"{out.stem}_rank{rank}.jsonl")
        assert (block["Success rate"], block["Results saved to"]) == (("100.0%", str(own)) if count else ("none",) * 2)
        assert count == (len(read_rows(own)) if own.exists() else 0)
    assert sum(int(block["Total contexts processed"]) for block in found.values()) == records


def test_the_shell_script_answers_with_two_workers(data: Path, out: Path, on_tiny: list[str], tmp_path: Path) -> None:
    variables = {
        "CONTEXTS_FILE": str(data),
        "OUTPUT_FILE": str(out),
        "MODEL_PATH": "tiny",
        "NUM_WORKERS": "2",
        "TOTAL_GPUS": "0",
        "MAX_SAMPLES_PER_WORKER": "2",
        "PYTHON": sys.executable,
    }
    done = start("bash", FOLDER / "run_multi_worker_inference.sh", *on_tiny, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    check_blocks(done.stdout, workers=2, records=4, out=out)
    assert "4 records = 4 successful + 0 errors" in done.stdout
    assert [(row["id"], row["answer"].strip()) for row in read_rows(out)] == [
        ("Dan 0", "20"), ("Dan 1", "27"), ("Rosa 0", "21"), ("Rosa 1", "28")
    ]  # fmt: skip
    stored = json.loads((tmp_path / "answers.jsonl.job" / "stats.json").read_text())
    assert (stored["records"], stored["successful"]) == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("under_torchrun", [False, True])
def test_the_script_on_the_bundled_model(
    data: Path, out: Path, on_tiny: list[str], tmp_path: Path, under_torchrun: bool
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if under_torchrun else []
    workers = [] if under_torchrun else ["--workers", 2]
    command = [sys.executable, *torchrun, SCRIPT, *arguments(data, out, *workers)[1:], "--model_path", "tiny", *on_tiny]
    done = start(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_blocks(done.stdout, workers=2, records=8, out=out)
    assert [row["answer"].strip() for row in read_rows(out)] == ["20", "27", "21", "28", "22", "29", "23", "30"]
    again = start(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr


def test_the_slicing_script(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "test_multi_worker_inference.py", "--skip-inference"]
    done = start(*command, "--num_samples", "103", "--num_workers", "4", "--total_gpus", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "worker 0: records 0 to 26, 26 of them",
        "worker 1: records 26 to 52, 26 of them",
        "worker 2: records 52 to 78, 26 of them",
        "worker 3: records 78 to 103, 25 of them",
    ]
    assert [line for line in lines if "GPU" in line] == [f"worker {n}: GPU {2 * n}, {2 * n + 1}" for n in range(4)]
    assert lines[-1] == "all checks passed"


def test_what_a_run_prints(data: Path, out: Path, on_upper: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [context_row(n, f"q{n}", "c", success=n != 2, error="not found") for n in range(4)]
    write_rows(data, [*rows, "{broken"])
    command = arguments(data, out, "--workers", 0, *on_upper)
    assert main(command) == 0
    printed = capsys.readouterr().out
    found = blocks(printed)["Worker 0 INFERENCE STATISTICS"]
    assert re.fullmatch(r"\d+\.\d\d+s", found.pop("Average inference time"))
    assert found == {
        "Total contexts processed": "5",
        "Successful inferences": "3",
        "Errors": "2",
        "Success rate": "60.0%",
        "Results saved to": str(out),
    }
    assert "Errors of class DataError: 1" in printed
    assert "5 records = 3 successful + 2 errors" in printed
    assert "failed: line 3: not found" in printed
    assert "failed: line 5 is not valid JSON" in printed
    assert "can be tried again" not in printed
    assert main(command) == 0
    again = capsys.readouterr()
    assert "5 records = 3 successful + 2 errors" in again.out
    assert "STATISTICS" not in again.out  # nothing was done that a block could count
    assert "nothing to do" in again.err


@pytest.mark.parametrize(
    ("successful", "processed", "shown"),
    [(245, 250, "98.0%"), (5, 6, "83.3%"), (0, 3, "0.0%"), (9999, 10000, "99.9%"), (1, 10000, "0.1%"), (0, 0, "none")],
)
def test_the_success_rate_says_all_and_none_only_where_it_is(successful: int, processed: int, shown: str) -> None:
    worker = dataclasses.replace(
        WorkerStatistics(), processed=processed, successful=successful, errors=processed - successful
    )
    assert _rate(worker) == shown


def test_the_first_rows_for_each_worker(data: Path, out: Path, on_upper: list[str]) -> None:
    assert main(arguments(data, out, "--workers", 0, "--max_samples_per_worker", 3, *on_upper)) == 0
    assert len(read_rows(out)) == 3


def test_urls_in_place_of_paths(data: Path, tmp_path: Path, on_upper: list[str]) -> None:
    bucket = tmp_path / "bucket"
    command = arguments(data.as_uri(), (bucket / "deep" / "answers.jsonl").as_uri(), "--workers", 0, *on_upper)
    assert main([*command, "--work_dir", str(tmp_path / "work")]) == 0
    assert len(read_rows(bucket / "deep" / "answers.jsonl")) == 8
    assert [path.name for path in (bucket / "deep").iterdir()] == ["answers.jsonl"]


def test_over_http_with_a_key(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_rows(data, [context_row(n, f"q{n}", "c") for n in range(3)])
    common = ["--inference_type", "openai", "--model_path", "m", "--workers", 1, "--verbose"]
    with FakeOpenAI(always=fake_openai.echoed_key(401)) as server:
        assert main(arguments(data, out, *common, "--base_url", server.base_url)) == 1
    refused = capfd.readouterr()
    assert "Check the key in OPENAI_API_KEY" in refused.err
    assert "3 records have no result yet: with that mended, the command continues where it was" in refused.err
    with FakeOpenAI(always=fake_openai.completion("yes")) as server:
        body = '{"seed": 5}'
        assert (
            main(arguments(data, out, *common, "--base_url", server.base_url, "--extra_body", body, "--overwrite")) == 0
        )
        assert {request.body["seed"] for request in server.requests} == {5}
        assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    assert [row["answer"] for row in read_rows(out)] == ["yes"] * 3
    written = everything_written(tmp_path) + "".join([*refused, *capfd.readouterr()]).encode()
    assert KEY.encode() not in written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--inference_type", "togetherai"], "the environment variable TOGETHER_API_KEY is not set"),
        (["--backend", "nowhere.py:Mine"], "the file nowhere.py does not exist"),
        (["--prompt_template", "nowhere.yaml"], "nowhere.yaml"),
        (["--max_samples_per_worker", "0"], "--max_samples_per_worker"),
        (["--ray_address", "auto"], "--ray_address is for --launcher ray"),
    ],
)
def test_wrong_flags_are_errors_that_name_them(
    data: Path,
    out: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    assert main(arguments(data, out, "--model_path", "tiny", "--workers", 0, *flags)) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", r"is \[1\]; it must be a JSON object")])
def test_an_extra_body_that_is_no_object_is_wrong_usage(
    data: Path, out: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments(data, out, "--model_path", "tiny", "--extra_body", text))
    assert re.search(f"^error: --extra_body {message}", capsys.readouterr().err)


def openai_lines() -> list[dict[str, Any]]:
    def line(custom_id: str, story: str, question: str, **body: Any) -> dict[str, Any]:
        messages = [{"role": "system", "content": story}, {"role": "user", "content": question}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0} | body
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}

    rows = [line(row["id"], row["context"], row["query"]) for row in story_rows(stories=2)]
    completion = {"model": "tiny", "prompt": rows[0]["body"]["messages"][0]["content"] + "How old is Emma?"}
    rows.append({**rows[0], "custom_id": "completion", "url": "/v1/completions", "body": completion})
    rows.append(line("images", "", "what", messages=[{"role": "user", "content": [{"type": "image_url"}]}]))
    return [*rows, rows[0], {"url": "/v1/completions"}]


def test_an_openai_batch_there_and_back(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openai.types import Completion
    from openai.types.chat import ChatCompletion

    source, contexts, output = (tmp_path / name for name in ("in.jsonl", "contexts.jsonl", "out.jsonl"))
    write_rows(source, openai_lines())
    assert main(["batch-import", str(source), str(contexts), "--target", "engine"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("12 lines = 9 requests + 1 refused + 2 left out\n")
    assert "line 10" in told.err
    assert 'line 11 has the "custom_id" of line 1; left out.' in told.err
    assert 'line 12 has no "custom_id"' in told.err
    engine = [
        "--model_path",
        "tiny",
        "--workers",
        0,
        "--dtype",
        "float32",
        "--max_new_tokens",
        4,
        "--temperature",
        0,
        "--ignore_eos",
    ]
    assert main(arguments(contexts, out, *engine)) == 0
    capsys.readouterr()
    assert main(["batch-export", str(out), str(output)]) == 0
    assert capsys.readouterr().out.startswith("10 rows = 9 answered + 1 failed + 0 left out\n")
    lines = read_rows(output)
    assert [line["custom_id"] for line in lines] == [row["id"] for row in story_rows(stories=2)] + [
        "completion",
        "images",
    ]
    for line in lines[:8]:
        body = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert line["error"] is None
        assert body.model == "tiny"
        assert body.usage
        assert body.usage.total_tokens == body.usage.prompt_tokens + body.usage.completion_tokens > 0
    text = Completion.model_validate(lines[8]["response"]["body"], strict=True)
    assert text.choices[0].text.strip() == "23"
    assert lines[9]["response"] is None
    assert "image_url" in lines[9]["error"]["message"]


def test_an_openai_batch_over_http_goes_out_as_it_came(tmp_path: Path, out: Path) -> None:
    source, contexts, output = (tmp_path / name for name in ("in.jsonl", "contexts.jsonl", "out.jsonl"))
    given = openai_lines()[:3]
    write_rows(source, given)
    assert main(["batch-import", str(source), str(contexts)]) == 0
    with FakeOpenAI() as server:
        command = arguments(contexts, out, "--workers", 0, "--inference_type", "openai", "--model_path", "other")
        assert main([*command, "--base_url", server.base_url]) == 0
        bodies = sorted((request.body for request in server.requests), key=json.dumps)
    assert bodies == sorted((line["body"] for line in given), key=json.dumps)
    assert main(["batch-export", str(out), str(output)]) == 0
    assert [line["response"]["body"]["choices"][0]["message"]["content"] for line in read_rows(output)] == [
        f"answer to {line['body']['messages'][-1]['content']}" for line in given
    ]


def test_rows_without_an_id_are_left_out_of_an_export(
    tmp_path: Path, out: Path, on_upper: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(data, [context_row(0, "q", "c"), "{broken"])
    main(arguments(data, out, "--workers", 0, *on_upper))
    capsys.readouterr()
    assert main(["batch-export", str(out), str(tmp_path / "batch.jsonl")]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("2 rows = 1 answered + 0 failed + 1 left out\n")
    assert told.err == 'line 2 has no "id"; left out.\n'
    assert [line["custom_id"] for line in read_rows(tmp_path / "batch.jsonl")] == ["0"]
