"""Files of other file systems: copied when they changed, and brought to their place whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest

from parallelmind.cli.main import main
from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.io.remote_files import LocalCopies, is_remote
from tests.fake_engine import FakeEngine, loaded_instead


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def copies(tmp_path: Path) -> LocalCopies:
    return LocalCopies(tmp_path / "work")


def test_what_is_remote() -> None:
    remote = ["s3://bucket/in.jsonl", "gs://b/x", "hf://datasets/a/b.jsonl", "file:///tmp/x", "memory://x"]
    assert [is_remote(path) for path in remote] == [True] * 5
    assert [is_remote(path) for path in ["in.jsonl", "/tmp/in.jsonl", Path("a/b")]] == [False] * 3


def test_local_files_are_left_where_they_are(copies: LocalCopies, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    assert copies.input(path) == copies.local(path) == path
    copies.upload(path)
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_copied_once_and_again_when_it_changed(copies: LocalCopies, memory: Any) -> None:
    memory.pipe_file("/folder/in.jsonl", b"one\n")
    local = copies.input("memory://folder/in.jsonl")
    assert (local.read_bytes(), local.name.endswith("-in.jsonl")) == (b"one\n", True)
    stamp = local.stat().st_mtime_ns
    os.utime(local, ns=(stamp - 10**9, stamp - 10**9))
    assert copies.input("memory://folder/in.jsonl") == local
    assert local.stat().st_mtime_ns == stamp - 10**9
    memory.pipe_file("/folder/in.jsonl", b"two\n")  # of the same size
    assert copies.input("memory://folder/in.jsonl") == local == copies.local("memory://folder/in.jsonl")
    assert local.read_bytes() == b"two\n"


def test_files_of_one_name_do_not_meet(copies: LocalCopies, memory: Any) -> None:
    memory.pipe({"/a/in.jsonl": b"a", "/b/in.jsonl": b"b"})
    first, second = copies.input("memory://a/in.jsonl"), copies.input("memory://b/in.jsonl")
    assert (first.read_bytes(), second.read_bytes()) == (b"a", b"b")


def test_a_copy_that_breaks_off_is_no_copy(
    copies: LocalCopies, memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory.pipe_file("/in.jsonl", b"whole\n")

    def breaks_off(name: str, local: str, **options: Any) -> None:
        Path(local).write_bytes(b"wh")
        raise ConnectionResetError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "get_file", lambda self, name, local, **options: breaks_off(name, local))
        with pytest.raises(DataError, match=r"cannot read memory://in.jsonl \(ConnectionResetError: gone\)"):
            copies.input("memory://in.jsonl")
        assert not copies.local("memory://in.jsonl").exists()
    assert copies.input("memory://in.jsonl").read_bytes() == b"whole\n"


def test_an_output_comes_whole_and_replaces_the_old_one(copies: LocalCopies, memory: Any) -> None:
    url = "memory://deep/er/out.jsonl"
    for content in (b"first\n", b"second\n"):
        local = copies.local(url)
        local.parent.mkdir(exist_ok=True)
        local.write_bytes(content)
        copies.upload(url)
        assert memory.cat("/deep/er/out.jsonl") == content
        assert memory.ls("/deep/er", detail=False) == ["/deep/er/out.jsonl"]


def test_an_upload_that_breaks_off_leaves_the_old_output(
    copies: LocalCopies, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/out.jsonl", b"old\n")
    local = copies.local("memory://out.jsonl")
    local.parent.mkdir()
    local.write_bytes(b"new\n")

    def breaks_off(system: Any, local: str, name: str, **options: Any) -> None:
        system.pipe_file(name, b"n")
        raise OSError("quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "put_file", breaks_off)
        with pytest.raises(
            JobError, match=r"cannot write memory://out.jsonl \(OSError: quota exceeded\).* same command"
        ):
            copies.upload("memory://out.jsonl")
        assert memory.cat("/out.jsonl") == b"old\n"
    copies.upload("memory://out.jsonl")
    assert memory.cat("/out.jsonl") == b"new\n"


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://nothing.jsonl", DataError, "the input memory://nothing.jsonl does not exist"),
        ("nosuch://bucket/x", SettingsError, "nosuch://bucket/x: .* known are paths such as s3://"),
    ],
)
def test_wrong_urls(copies: LocalCopies, memory: Any, url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        copies.input(url)


def test_a_file_system_whose_library_is_missing_names_the_command(copies: LocalCopies) -> None:
    if find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(SettingsError, match=r"needs s3fs; install it with pip install 'parallelmind\[cloud\]'"):
        copies.input("s3://bucket/in.jsonl")


def test_a_batch_from_url_to_url_that_is_resumed(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "bucket" / "out.jsonl"
    source.write_text("".join(json.dumps({"main": f"m{n}", "branches": ["b"]}) + "\n" for n in range(5)))
    engines = [FakeEngine(fails=lambda prompt: prompt == [ord("b")]), FakeEngine(), FakeEngine()]
    loaded_instead(request, monkeypatch, lambda settings: engines[0])
    flags = ["--base_model", "m", "--workers", "0", "--work_dir", str(tmp_path / "work")]
    command = ["batch", "--data_path", source.as_uri(), "--out_path", target.as_uri(), *flags]
    assert main(command) == 0
    assert [json.loads(row)["output"] for row in target.read_text().splitlines()] == [None] * 5
    engines.pop(0)
    assert main([*command, "--retry_failed"]) == 0
    answers = [json.loads(row)["output"] for row in target.read_text().splitlines()]
    assert all(answers)
    assert len(answers) == 5
    source.write_text('{"text": "changed"}\n')
    capsys.readouterr()
    assert main([*command, "--seed", "7"]) == 0
    said = capsys.readouterr().err
    assert "seed was 0, is now 7" in said
    assert f"answers are in {target.with_name('out_2.jsonl').as_uri()}" in said
    assert len(target.with_name("out_2.jsonl").read_text().splitlines()) == 1
    assert [json.loads(row)["output"] for row in target.read_text().splitlines()] == answers
