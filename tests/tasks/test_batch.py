import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallelmind.engine.request import Branch
from parallelmind.errors import RequestError
from parallelmind.prompts.encode import PromptIds
from parallelmind.prompts.length import LengthBound
from parallelmind.tasks.batch import BatchReport, run_batch
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.tasks.batch_records import Dialogue
from parallelmind.tasks.batch_worker import Backend, branch_seed
from tests.fake_engine import FakeEngine, encode, fake_backend

Rows = list[dict[str, Any]]


class Recorder:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, int]]] = []

    def start(self, **values: int) -> None:
        self.calls.append(("start", values))

    def update(self, **values: int) -> None:
        self.calls.append(("update", values))

    def stop(self) -> None:
        self.calls.append(("stop", {}))


class Run:
    """A folder with an input, and runs over it."""

    def __init__(self, folder: Path, records: list[Any]) -> None:
        self.data, self.out = folder / "in.jsonl", folder / "out.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        self.data.write_text("".join(line + "\n" for line in lines))

    def __call__(self, engine: FakeEngine | None = None, **given: Any) -> BatchReport:
        self.progress = Recorder()
        self.engine = engine or FakeEngine()
        options = BatchOptions(base_model="m", data_path=self.data, out_path=self.out, **given)
        return run_batch(options, progress=self.progress, load=lambda options: fake_backend(self.engine))

    @property
    def rows(self) -> Rows:
        return [json.loads(line) for line in self.out.read_text("utf-8").splitlines()]


def record(n: int, branches: int = 3) -> dict[str, Any]:
    return {"main": f"main {n}", "branches": [f"branch {n}.{k}" for k in range(branches)], "id": f"r{n}"}


@pytest.fixture
def ten(tmp_path: Path) -> Run:
    return Run(tmp_path, [record(n, 1 + n % 6) for n in range(10)])


def test_every_branch_has_its_answer_in_input_order(ten: Run) -> None:
    report = ten(branches_per_sample=2)
    assert [(row["line"], row["branch"], row["id"], row["input"]) for row in ten.rows] == [
        (n + 1, k, f"r{n}", f"branch {n}.{k}") for n in range(10) for k in range(1 + n % 6)
    ]
    assert all(row["finish_reason"] == "stop" and row["output_tokens"] == 12 for row in ten.rows)
    assert list(ten.rows[0]) == ["input", "output", "line", "branch", "id", "finish_reason", "output_tokens"]
    assert len({row["output"] for row in ten.rows}) == len(ten.rows) == report.generations
    assert (report.records, report.answered, report.failed, report.failed_rows) == (10, 10, 0, 0)
    assert report.generated_tokens == 12 * len(ten.rows)


def test_rows_keep_the_numbers_of_their_branches(tmp_path: Path) -> None:
    run = Run(tmp_path, [record(0, 5)])
    run(branches_per_sample=2)

    def numbers() -> list[list[int | None]]:
        return [[b.branch_id for b in request.branches if isinstance(b, Branch)] for request in run.engine.requests]

    assert numbers() == [[1, 2], [3, 4], [5]]
    assert all(request.main == encode("main 0") for request in run.engine.requests)
    split = run.rows
    run(max_branches_per_sample=4, overwrite=True)
    assert numbers() == [[1, 2, 3], [4, 5]]
    assert run.rows == split


def test_a_text_is_main_and_continued_once(tmp_path: Path) -> None:
    run = Run(tmp_path, [{"text": "早上好", "id": 0}])
    run()
    [request] = run.engine.requests
    assert request.main == encode("早上好")
    assert [(b.prompt, b.branch_id) for b in request.branches if isinstance(b, Branch)] == [([], 0)]
    [row] = run.rows
    assert (row["input"], row["branch"], row["id"]) == ("早上好", 0, 0)
    assert "早上好" in run.out.read_text("utf-8")


def test_answers_do_not_depend_on_batching_threads_or_splitting(ten: Run) -> None:
    ten()
    before = ten.rows
    for variant in [
        {"batch_size": 1, "num_workers": 0},
        {"num_workers": 4, "batch_by_samples": True},
        {"branches_per_sample": 1},
        {"max_branches_per_sample": 5},
    ]:
        ten(FakeEngine(running=1), **variant, overwrite=True)
        assert ten.rows == before
    ten(seed=1, overwrite=True)
    assert all(row["output"] != old["output"] for row, old in zip(ten.rows, before, strict=True))


def test_seeds_differ_by_record_and_branch() -> None:
    seeds = {branch_seed(s, bytes([r]), k) for s in range(3) for r in range(30) for k in range(30)}
    assert len(seeds) == 2700
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert branch_seed(0, b"", 0) == 1615735844314199618


def test_sampling_reaches_every_branch(tmp_path: Path) -> None:
    run = Run(tmp_path, [record(0)])
    given = {
        "max_new_tokens": 3, "temperature": 0.1, "top_p": 0.2, "top_k": 4, "min_p": 0.5,
        "repetition_penalty": 1.6, "stop": ("x", "y"), "ignore_eos": True,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {4: -100}, "stop_token_ids": (3, 5),
    }  # fmt: skip
    run(**given)
    branch = run.engine.requests[0].branches[2]
    assert isinstance(branch, Branch)
    for params in (branch.sampling, run.engine.sampling):
        assert {name: getattr(params, name) for name in given} == given
    assert branch.sampling
    assert branch.sampling.seed == branch_seed(0, hashlib.sha256(json.dumps(record(0)).encode()).digest()[:16], 3)


BAD_ROWS = ["{", "[]", '{"main": "m"}', '{"main": "kept", "branches": [], "id": 4}', '{"text": ""}', '"x"']


def test_bad_records_get_an_error_row_in_their_place(tmp_path: Path) -> None:
    run = Run(tmp_path, [record(0, 1), *BAD_ROWS, record(1, 1), "", '{"text": "' + "x" * 1000 + '"}'])
    report = run()
    assert [row["line"] for row in run.rows] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert [row["output"] is None for row in run.rows] == [False, *[True] * 6, False, True]
    assert list(run.rows[1]) == ["input", "output", "error", "line"]
    assert run.rows[4] == {
        "input": "kept",
        "output": None,
        "error": 'line 5: "branches" is empty; expected at least one text, or the form {"text": "..."}.',
        "line": 5,
        "id": 4,
    }
    assert run.rows[8]["input"] == "x" * 1000
    assert "line 10: main has 1000 tokens, and the model takes 1000" in run.rows[8]["error"]
    assert (report.records, report.answered, report.failed, report.blank_lines) == (9, 2, 7, 1)
    assert [line for line, _ in report.failures] == [2, 3, 4, 5, 6, 7, 10]


def test_only_the_first_failures_are_listed(tmp_path: Path) -> None:
    report = Run(tmp_path, ["{"] * 50)()
    assert (len(report.failures), report.failed) == (20, 50)


def test_a_file_of_bad_records_never_reaches_the_engine_nor_piles_up(tmp_path: Path) -> None:
    run = Run(tmp_path, ["{"] * 1000)
    run()
    assert not run.engine.requests
    assert len(run.rows) == 1000


def test_a_branch_that_fails_leaves_the_others_their_answers(tmp_path: Path) -> None:
    run = Run(tmp_path, [record(0)])
    report = run(FakeEngine(fails=lambda prompt: prompt == encode("branch 0.1")))
    assert [row["output"] is None for row in run.rows] == [False, True, False]
    error = {"output": None, "error": "it broke; mend it"}
    assert run.rows[1] == {"input": "branch 0.1", **error, "line": 1, "branch": 1, "id": "r0"}
    assert (report.answered, report.failed, report.generations, report.failed_rows) == (0, 1, 2, 1)
    whole = run(retry_failed=True)
    assert (whole.answered, whole.generations, whole.failed_rows) == (1, 3, 0)
    assert all(row["output"] for row in run.rows)


def test_a_branch_that_is_too_long_says_both_lengths(tmp_path: Path) -> None:
    run = Run(tmp_path, [{"main": "m" * 90, "branches": ["a" * 9, "b" * 10, "c" * 30]}])
    run(FakeEngine(max_model_len=100))
    assert [row["output"] is None for row in run.rows] == [False, True, True]
    assert "branch 1: main has 90 tokens and the prompt 10, and the model takes 100" in run.rows[1]["error"]
    run(max_total_tokens=110, overwrite=True)
    assert [row["output"] is None for row in run.rows] == [False, False, True]
    assert "main has 90 tokens and the prompt 30, above --max_total_tokens 110" in run.rows[2]["error"]
    assert [len(request.branches) for request in run.engine.requests] == [2]
    run(max_total_tokens=101, overwrite=True)
    assert [len(request.branches) for request in run.engine.requests] == [1, 1]


def test_a_text_the_tokenizer_cannot_take_is_a_failed_record(tmp_path: Path) -> None:
    run = Run(tmp_path, [record(0, 1), record(1, 1)])

    def encode_main(text: str) -> list[int]:
        if text == "main 0":
            raise OverflowError("no")
        return encode(text)

    options = BatchOptions(base_model="m", data_path=run.data, out_path=run.out)
    engine = FakeEngine()
    backend = Backend(engine=engine, encode_main=encode_main, encode_branch=lambda text, has_main: encode(text))
    run_batch(options, progress=Recorder(), load=lambda options: backend)
    assert run.rows[0]["error"] == "line 1 cannot be tokenised (OverflowError: no)."
    assert run.rows[1]["output"]


def test_texts_without_tokens_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, [{"text": "a"}])
    backend = Backend(engine=FakeEngine(), encode_main=lambda text: [], encode_branch=lambda text, has_main: [])
    options = BatchOptions(base_model="m", data_path=run.data, out_path=run.out)
    run_batch(options, progress=Recorder(), load=lambda options: backend)
    assert "there is nothing to continue" in run.rows[0]["error"]


def test_records_with_conversations_are_encoded_as_such(tmp_path: Path) -> None:
    """Each turn of the user has its answer; what the chat template refuses is the error of its record."""
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}]
    records = [{"main": turns, "branches": ["Sure?", "Why?"], "id": "a"}, {"messages": turns[1:], "id": "b"}]
    run = Run(tmp_path, [*records, {"main": "m", "branches": ["t"]}])

    def encode_dialogue(record: Dialogue) -> PromptIds:
        if record.fields.get("id") == "b":
            raise RequestError("refused")
        return PromptIds(encode("said"), [encode(text) for text in record.inputs])

    engine = FakeEngine()
    backend = dataclasses.replace(fake_backend(engine), encode_dialogue=encode_dialogue)
    options = BatchOptions(base_model="m", data_path=run.data, out_path=run.out)
    report = run_batch(options, progress=Recorder(), load=lambda options: backend)
    assert report is not None
    assert (report.answered, report.failed, report.generations) == (2, 1, 3)
    assert [(row["input"], row["line"], row.get("branch"), row.get("id")) for row in run.rows] == [
        ("Sure?", 1, 0, "a"), ("Why?", 1, 1, "a"), ("", 2, None, "b"), ("t", 3, 0, None)
    ]  # fmt: skip
    assert run.rows[2]["error"] == "line 2: refused"
    assert [list(request.main) for request in engine.requests] == [encode("said"), encode("m")]
    again = dataclasses.replace(options, as_messages=True, overwrite=True)
    run_batch(again, progress=Recorder(), load=lambda options: backend)
    assert list(engine.requests[-1].main) == encode("said")


def interrupt_at(number: int) -> Callable[[int], None]:
    def on_request(current: int) -> None:
        if current == number:
            raise KeyboardInterrupt

    return on_request


@pytest.mark.parametrize("moment", [0, 3, 9])
def test_interrupted_and_started_again_is_as_uninterrupted(ten: Run, tmp_path: Path, moment: int) -> None:
    other = tmp_path / "other"
    other.mkdir()
    reference = Run(other, [record(n, 1 + n % 6) for n in range(10)])
    reference()
    with pytest.raises(KeyboardInterrupt):
        ten(FakeEngine(on_request=interrupt_at(moment), running=2))
    assert ten.progress.calls[-1][0] == "stop"
    assert not ten.out.exists()
    report = ten()
    assert ten.out.read_bytes() == reference.out.read_bytes()
    assert report.resumed < 10
    assert report.answered == 10
    assert ten.progress.calls[0] == ("start", {"total": 10, "done": report.resumed})


def test_a_complete_run_loads_no_model(ten: Run) -> None:
    ten()
    options = BatchOptions(base_model="m", data_path=ten.data, out_path=ten.out)

    def load(options: BatchOptions) -> Backend:
        raise AssertionError

    report = run_batch(options, progress=Recorder(), load=load)
    assert (report.answered, report.resumed, report.seconds) == (10, 10, 0.0)


def test_other_settings_take_a_new_name(ten: Run, caplog: pytest.LogCaptureFixture) -> None:
    first = ten().out_path
    assert ten(temperature=0.0).out_path == first.with_name(f"{first.stem}_2.jsonl")
    assert "temperature was 0.7, is now 0.0" in caplog.text
    assert ten(max_samples=3).out_path == first.with_name(f"{first.stem}_3.jsonl")
    assert ten(max_samples=10).out_path == ten().out_path == first


def test_the_first_records_only(ten: Run) -> None:
    assert ten(max_samples=3).records == 3
    assert [row["line"] for row in ten.rows] == [1, 2, 2, 3, 3, 3]


def test_progress_counts_up_to_the_end(ten: Run) -> None:
    ten()
    updates = [values for name, values in ten.progress.calls if name == "update"]
    assert [values["done"] for values in updates] == sorted(values["done"] for values in updates)
    assert updates[-1] == {"done": 10, "failed": 0, "generated_tokens": 12 * len(ten.rows), "by_worker": {0: 10}}


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    fill = "x" * 12_000
    with data.open("w") as file:
        for n in range(8000):
            file.write(json.dumps({"main": f"{n} {fill}", "branches": [fill, str(n)]}) + "\n")
    assert data.stat().st_size > 190e6
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from tests.fake_engine import FakeEngine
        from tests.tasks.test_batch import Recorder
        from parallelmind.tasks.batch import run_batch
        from parallelmind.tasks.batch_worker import Backend
        from parallelmind.tasks.batch_options import BatchOptions

        class Silent(Recorder):
            def update(self, **values):
                pass

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        engine = FakeEngine(max_model_len=10**9, keep_requests=False)
        cheap = lambda text, has_main=False: [len(text)]
        options = BatchOptions(base_model="m", data_path=Path(sys.argv[1]), out_path=Path(sys.argv[2]))
        before = peak()
        run_batch(options, progress=Silent(), load=lambda options: Backend(engine, cheap, cheap))
        print((peak() - before) // 1024)
        """
    ).replace("Backend(engine, cheap, cheap)", "Backend(engine=engine, encode_main=cheap, encode_branch=cheap)")
    done = subprocess.run(
        [sys.executable, "-c", script, str(data), str(out)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stat().st_size > 90e6
    assert int(done.stdout) < 40, "MB of growth"


def test_an_edited_input_gives_the_output_of_an_undisturbed_run(ten: Run, tmp_path: Path) -> None:
    """Sampled answers too: a record draws by what it is, not by where it stands."""
    ten(temperature=0.8)
    lines = ten.data.read_text().splitlines()
    edited = ["", lines[7], lines[2], lines[2], '{"text": "new"}', *lines[3:6], lines[0]]
    ten.data.write_text("\n".join(edited))
    report = ten(temperature=0.8)
    assert report.records_in_this_run == 2
    assert [row["line"] for row in ten.rows if row.get("id") == "r0"] == [9]
    (tmp_path / "fresh").mkdir()
    fresh = Run(tmp_path / "fresh", [])
    fresh.data.write_text("\n".join(edited))
    fresh(temperature=0.8)
    assert fresh.out.read_bytes() == ten.out.read_bytes()
    twice = [row["output"] for row in ten.rows if row.get("id") == "r2"]
    assert twice[:3] != twice[3:]


def test_what_cannot_fit_is_not_tokenized(tmp_path: Path) -> None:
    records = [{"text": "x" * 2000}, {"text": "x" * 1998}, {"main": "m", "branches": ["y" * 2000, "fits"]}]
    run = Run(tmp_path, records)
    engine, seen = FakeEngine(), []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return list(range(3, 3 + min(len(text), 5)))

    backend = Backend(
        engine=engine,
        encode_main=encode,
        encode_branch=lambda text, has_main: encode(text),
        bound=LengthBound(of_ascii=2, of_others=2),
    )
    options = BatchOptions(base_model="m", data_path=run.data, out_path=run.out)
    run_batch(options, load=lambda options: backend)
    assert sorted(seen) == [1, 4, 1998]
    assert [row.get("error") for row in run.rows] == [
        "line 1: main has 2,000 characters, which are 1,000 tokens at least, and the model takes 1000; shorten it.",
        None,
        "line 3, branch 0: the prompt has 2,000 characters, which are 1,000 tokens at least, and the model takes 1000; "
        "shorten it.",
        None,
    ]
