"""Source archives beside wheels: where they come from, and what of them is read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus import source_archive
from parallelmind.retrieval.corpus.fetch import open_archive
from parallelmind.retrieval.corpus.source_archive import find_source, source_texts
from tests.retrieval.corpus.wheels import SHAPES, make_sdist, make_wheel

NOTES = {**SHAPES, "CHANGES.rst": "Version 1.0\n", "docs/index.rst": "Formes: é\n", "docs/logo.png": "no text"}


def test_it_is_fetched_once(tmp_path: Path, offered: Path) -> None:
    make_sdist(offered, NOTES, version="1.1")
    sdist = make_sdist(offered, NOTES)
    archive, cache = open_archive(make_wheel(tmp_path / "wheels", SHAPES)), tmp_path / "cache"
    assert find_source(archive, cache, is_online=False) is None
    found = find_source(archive, cache, is_online=True)
    assert found is not None
    assert found.path == cache / "sources" / sdist.name
    sdist.unlink()
    assert find_source(archive, cache, is_online=False) == found
    assert not (offered / "setup_ran").exists()


def test_there_is_none(tmp_path: Path, offered: Path) -> None:
    make_sdist(offered, NOTES, version="1.1")
    archive = open_archive(make_wheel(tmp_path / "wheels", SHAPES))
    assert find_source(archive, tmp_path / "cache", is_online=True) is None


def test_a_source_archive_is_its_own_and_one_beside_a_wheel_is_found(tmp_path: Path, offered: Path) -> None:
    sdist = open_archive(make_sdist(tmp_path / "wheels", NOTES))
    assert find_source(sdist, tmp_path / "cache", is_online=False) == sdist
    wheel = open_archive(make_wheel(tmp_path / "wheels", SHAPES))
    assert find_source(wheel, tmp_path / "cache", is_online=False) == sdist


def test_one_that_is_damaged(tmp_path: Path, offered: Path) -> None:
    make_sdist(offered, NOTES).write_bytes(b"no archive at all")
    archive = open_archive(make_wheel(tmp_path / "wheels", SHAPES))
    found = find_source(archive, tmp_path / "cache", is_online=True)
    assert found is not None
    with pytest.raises(DataError, match=r"shapes-1\.0\.tar\.gz is damaged"):
        list(source_texts(found, lambda path: True))


def test_texts(tmp_path: Path) -> None:
    source = open_archive(make_sdist(tmp_path, NOTES))
    wanted = (".rst", ".md")
    assert dict(source_texts(source, lambda path: path.endswith(wanted))) == {
        "CHANGES.rst": "Version 1.0\n",
        "docs/index.rst": "Formes: é\n",
    }
    assert [path.name for path in tmp_path.iterdir()] == [source.path.name]


def test_what_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shapes-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, size in (("one.rst", 3), ("huge.rst", 5 * 2**20), ("two.rst", 5), ("three.rst", 1)):
            entry = tarfile.TarInfo(f"shapes-1.0/{name}")
            entry.size = size
            archive.addfile(entry, io.BytesIO(b"x" * size))
    source = open_archive(path)
    assert [name for name, _ in source_texts(source, lambda path: True)] == ["one.rst", "two.rst", "three.rst"]
    monkeypatch.setattr(source_archive, "_TEXT_BYTES", 7)
    assert [name for name, _ in source_texts(source, lambda path: True)] == ["one.rst"]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shapes-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("shapes-1.0/CHANGES.rst")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(DataError, match="is a link out of the archive"):
        list(source_texts(open_archive(path), lambda path: True))
