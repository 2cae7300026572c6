"""Every command and Python block of the documents does what a reader of them expects: it runs.

What stands in the way of running it as it is written, and what is done about it, is listed in `rules.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parallelmind.cli.commands import COMMANDS
from parallelmind.cli.main import main
from tests.docs.blocks import DOCUMENTS, ROOT, Block, blocks_of, commands_of, prose_of
from tests.docs.desk import lay_out
from tests.docs.reader import Reader, substituted
from tests.docs.rules import NOT_RUN, TRANSLATIONS
from tests.docs.usage import flags_of
from tests.server.serving import running, tiny_engine

RUN = [document for document in DOCUMENTS if document not in TRANSLATIONS]
_OTHERS_FLAGS = {
    *("--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"),  # torchrun
    *("--index-url", "--no-index", "--find-links"),  # pip
    *("--help", "--mode", "--flag"),  # all commands, a script, and a placeholder
}
"""Flags that are none of our commands', which documents mention too."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that documents name; copied for each document."""
    folder = tmp_path_factory.mktemp("desk") / "files"
    lay_out(folder)
    with contextlib.chdir(folder):
        queries = ["--queries_file", "queries.json", "--corpus_path", "corpora", "--max_samples", "6"]
        assert main(["contexts", *queries, "--output_file", "contexts.jsonl", "--workers", "0"]) == 0
        model = ["--base_model", "tiny", "--data_path", "train.jsonl", "--device", "cpu", "--dtype", "float32"]
        assert main(["train", *model, "--lora_name", "prepared", "--max_steps", "1"]) == 0
    written = folder / "out" / "lora"
    for name in ("prepared_final.pth", "prepared_final.parallelmind.json", "prepared_final"):
        (written / name).rename(folder / name.replace("prepared_final", "adapter"))
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "contexts.jsonl.job", ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[], str]]:
    """Starts a server when its address is asked for."""
    with contextlib.ExitStack() as stack:
        urls: list[str] = []

        def address() -> str:
            if not urls:
                urls.append(stack.enter_context(running(tiny_engine)).url)
            return urls[0]

        yield address


@pytest.mark.half_precision
@pytest.mark.parametrize("document", RUN)
def test_every_command_runs(
    document: str,
    desk: Path,
    server: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "work"
    reader = Reader(document, desk, folder, server, capsys)
    monkeypatch.chdir(folder)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    try:
        for block in blocks_of(document):
            reader.read(block)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("frobnicate records.jsonl", "neither run nor listed"),
        ("python scripts/no_such_script.py", "ended with 2"),
        ("parallelmind generate --base_model tiny --promt hello", "ended with 2"),
        ("parallelmind generate --base_model tiny --prompt_file missing.txt", "ended with 1"),
        ("parallelmind batch --launcher ray --data_path records.jsonl", "the parser refuses"),
        ("torchrun --nproc_per_node 2 scripts/parallel_inference_hf_lora.py --bass_model tiny", "the parser refuses"),
        ("pip install 'parallelmind[nothing]'", "no extra"),
        ("bash utils/RAGutils/missing.sh", "No such file"),
    ],
)
def test_what_is_wrong_is_noticed(
    typed: str,
    said: str,
    desk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader("made up", desk, tmp_path / "work", lambda: "", capsys)
    monkeypatch.chdir(reader.folder)
    with pytest.raises(AssertionError, match=said):
        reader.read(Block("made up", 0, 1, "sh", typed + "\n"))


def test_rules_name_tests_that_exist_and_are_all_used() -> None:
    commands = [
        str(command)
        for document in DOCUMENTS
        for block in blocks_of(document)
        if block.is_shell and block.file_name is None
        for command in commands_of(block)
    ]
    for rule in NOT_RUN:
        assert not rule.test or rule.proof_exists(), rule
        assert any(re.match(rule.pattern, command) for command in commands), f"no document needs the rule {rule}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_flags_in_the_text(document: str) -> None:
    """Those between back-quotes in a sentence: commands and flags that exist."""
    every = {flag for name in COMMANDS for flag in flags_of(name)} | _OTHERS_FLAGS
    for code in re.findall(r"`([^`\n]+)`", prose_of(document)):
        words = _words(code)
        if words[:1] == ["parallelmind"] and len(words) > 1 and words[1] in COMMANDS:
            known = flags_of(words[1])
        elif re.match(r"--\w", code):
            known = every
        else:
            continue
        for word in words:
            if word.startswith("--") and len(word) > 2 and "…" not in word:
                flag = word.partition("=")[0].rstrip(":;,.")
                assert flag in known or flag in _OTHERS_FLAGS, f"{document}: `{code}`: no flag {flag}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)", prose_of(document)):
        path = ((ROOT / document).parent / link).resolve() if link else ROOT / document
        assert path.exists(), f"{document} links to {link}, which does not exist"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in map(_anchor, titles), f"{document} links to {link}{anchor}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_are_named_exist(document: str) -> None:
    path = ""
    for named, function in re.findall(r"`((?:tests/[\w/]+\.py)?)::(\w+)`", prose_of(document)):
        path = named or path
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), f"{document}: {path}::{function}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_exist(document: str) -> None:
    """From the root, or below the package."""
    for named in re.findall(r"`([\w.-]+/[\w./-]*\.(?:py|ya?ml|md))`", prose_of(document)):
        assert any((folder / named).exists() for folder in (ROOT, ROOT / "src" / "parallelmind")), named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_json_is_json(document: str) -> None:
    """A value, a row in each line, or fields of an object."""
    for block in blocks_of(document):
        if block.language == "json" and not _is_json(block.text) and not _is_json(f"{{{block.text}}}"):
            for line in filter(None, block.text.splitlines()):
                assert _is_json(line), f"{document}:{block.line}: {line}"


def test_substitutions_leave_the_rest_of_a_command() -> None:
    command = "parallelmind batch --base_model Qwen/Qwen2.5-0.5B --data_path a.jsonl --workers 4 --device cuda:1"
    assert substituted(command) == "parallelmind batch --base_model tiny --data_path a.jsonl --workers 0 --device cpu"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _words(code: str) -> list[str]:
    try:
        return shlex.split(code)
    except ValueError:  # an apostrophe
        return code.split()


def _anchor(title: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
