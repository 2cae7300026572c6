"""Subclasses of `QueryBasedInference`: how they are found and how they run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallelmind.answering.backends.adapter import UserBackend
from parallelmind.answering.backends.base import Answer, AnswerResult, InferenceSettings, Prompt, QueryBasedInference
from parallelmind.answering.backends.loading import load_backend_class
from parallelmind.errors import SettingsError

MINE = """
from parallelmind import QueryBasedInference
from helper_beside import shout

class Mine(QueryBasedInference):
    def setup(self):
        self.greeting = f"{self.settings.model_path}:"
    def generate_answer(self, query, context, retrieval_method):
        return shout(f"{self.greeting} {query} / {context} / {retrieval_method}")

class Other:
    pass

class Unfinished(QueryBasedInference):
    pass
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "helper_beside.py").write_text("def shout(text): return text.upper()\n")
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def outcomes_of(backend_class: type[QueryBasedInference], prompts: list[Prompt]) -> list[AnswerResult]:
    backend = UserBackend(backend_class, InferenceSettings(model_path="m"))
    results: dict[int, AnswerResult] = {}
    backend.run(range(len(prompts)), lambda n: prompts[n], lambda n, result: results.update({n: result}))
    backend.close()
    return [results[n] for n in range(len(prompts))]


def test_a_class_in_a_file_with_a_module_beside_it(file: Path) -> None:
    result = outcomes_of(
        load_backend_class(f"{file}:Mine"), [Prompt(query="why?", context="c", retrieval_method="absent")]
    )[0]
    assert result.text == "M: WHY? / C / ABSENT"
    assert load_backend_class(f"{file}:Mine") is load_backend_class(f"{file}:Mine")


def test_a_class_in_a_module_of_the_current_folder(file: Path) -> None:
    where = "parallelmind.answering.backends.loading"
    script = f"from {where} import load_backend_class as load; print(load('mine:Mine').__name__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=file.parent, capture_output=True, text=True, timeout=60)
    assert done.stdout == "Mine\n", done.stderr


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("mine.py", r"--backend is 'mine.py'; expected file.py:ClassName or module:ClassName"),
        (":Mine", "expected file.py:ClassName"),
        ("{folder}/mine.py:", "expected file.py:ClassName"),
        ("{folder}/nope.py:Mine", "nope.py does not exist"),
        ("no_such_module:Mine", "there is no module no_such_module"),
        ("json.nope:Mine", "there is no module json.nope"),
        ("{folder}/mine.py:Nope", r"there is no Nope .*: Mine, Unfinished\)"),
        ("{folder}/mine.py:Other", "Other is no subclass of QueryBasedInference"),
        ("{folder}/mine.py:shout", "shout is no subclass"),
        ("{folder}/mine.py:Unfinished", "Unfinished does not override generate_answer"),
        ("{folder}/broken.py:Mine", "cannot be imported: ZeroDivisionError: division by zero"),
        ("{folder}/script.py:Mine", "cannot be imported: SystemExit: 3"),
        ("{folder}/needs.py:Mine", "cannot be imported: ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_what_is_wrong_is_said(file: Path, spec: str, error: str) -> None:
    (file.parent / "broken.py").write_text("1 / 0")
    (file.parent / "script.py").write_text("raise SystemExit(3)")
    (file.parent / "needs.py").write_text("import not_installed")
    with pytest.raises(SettingsError, match=error):
        load_backend_class(spec.format(folder=file.parent))


class Varied(QueryBasedInference):
    def generate_answer(self, query: str, context: str, retrieval_method: str) -> str | Answer:
        match query:
            case "raise":
                raise KeyError("no entry")
            case "silent":
                raise ValueError
            case "none":
                return None  # type: ignore[return-value]
            case "half":
                return "\ud83d"
            case "rich":
                return Answer("rich", tokens_in=3, tokens_out=1, finish_reason="length")
            case _:
                return ""


def test_every_row_has_its_outcome_whatever_the_others_do() -> None:
    queries = ["raise", "silent", "none", "half", "rich", "empty"]
    results = dict(zip(queries, outcomes_of(Varied, [Prompt(query=query) for query in queries]), strict=True))
    assert (results["raise"].error_class, results["raise"].error) == ("KeyError", "'no entry'")
    assert (results["silent"].error_class, results["silent"].error) == ("ValueError", "ValueError")
    assert results["none"].error == "Varied.generate_answer returned NoneType; expected a text or an Answer"
    assert "surrogate" in str(results["half"].error)
    assert (results["rich"].text, results["rich"].tokens_in, results["rich"].finish_reason) == ("rich", 3, "length")
    assert results["empty"].text == ""
    json.dumps([result.error for result in results.values()]).encode()


def test_one_after_the_other_in_the_calling_thread_and_no_row_ahead() -> None:
    events: list[str] = []
    threads: set[str] = set()

    class Sequential(QueryBasedInference):
        def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
            threads.add(threading.current_thread().name)
            events.append(f"ask {query}")
            return query

    def rows() -> Iterator[str]:
        for name in "ab":
            events.append(f"pull {name}")
            yield name

    UserBackend(Sequential, InferenceSettings()).run(
        rows(), lambda row: Prompt(query=row), lambda row, result: events.append(f"done {row}")
    )
    assert events == ["pull a", "ask a", "done a", "pull b", "ask b", "done b"]
    assert threads == {threading.current_thread().name}


def test_several_at_once_if_the_class_says_so() -> None:
    together = threading.Barrier(3, timeout=60)

    class Parallel(QueryBasedInference):
        concurrency = 3

        def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
            together.wait()  # only passed when three are here
            return query

    results = outcomes_of(Parallel, [Prompt(query=str(n)) for n in range(9)])
    assert [result.text for result in results] == [str(n) for n in range(9)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_interrupt_passes_through(concurrency: int) -> None:
    class Interrupted(QueryBasedInference):
        def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
            raise KeyboardInterrupt

    Interrupted.concurrency = concurrency
    done: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        UserBackend(Interrupted, InferenceSettings()).run(
            range(5), lambda row: Prompt(), lambda row, result: done.append(row)
        )
    assert done == []


def test_set_up_once_and_closed_once() -> None:
    calls: list[str] = []

    class Logged(QueryBasedInference):
        def __init__(self) -> None:
            calls.append("init")

        def setup(self) -> None:
            calls.append(f"setup {self.settings.model_path} {self.settings.temperature}")

        def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
            calls.append("ask")
            return query

        def close(self) -> None:
            calls.append("close")

    backend = UserBackend(Logged, InferenceSettings(model_path="m", temperature=0.5))
    assert calls == []
    for _ in range(2):
        backend.run([1], lambda row: Prompt(), lambda row, result: None)
    backend.close()
    backend.close()
    assert calls == ["init", "setup m 0.5", "ask", "ask", "close"]


def test_a_failing_setup_stops_the_job() -> None:
    class Unready(QueryBasedInference):
        def setup(self) -> None:
            raise FileNotFoundError("weights.bin")

        def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
            return ""

    class TooFew(QueryBasedInference):
        concurrency = 0

        def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
            return ""

    with pytest.raises(SettingsError, match=r"Unready cannot be set up: FileNotFoundError: weights\.bin"):
        outcomes_of(Unready, [Prompt()])
    with pytest.raises(SettingsError, match=r"TooFew\.concurrency is 0"):
        outcomes_of(TooFew, [Prompt()])
