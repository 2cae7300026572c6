"""Where archives come from: folders and indexes made here, and no others."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.version import Version

from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.corpus import environment, pip
from parallelmind.retrieval.corpus.environment import (
    dependencies_of_the_time,
    older_dependencies,
    other_interpreters,
)
from parallelmind.retrieval.corpus.fetch import fetch, open_archive
from parallelmind.retrieval.corpus.names import find_import_names, parse_request, source_root
from parallelmind.retrieval.corpus.package_index import IndexFile, PackageIndex
from parallelmind.retrieval.corpus.pip import Pip
from tests.retrieval.corpus.sandboxes import sandbox_or_none
from tests.retrieval.corpus.wheels import SHAPES, make_sdist, make_wheel, write_package


def get(tmp_path: Path, request: str) -> Path:
    scratch = tmp_path / "scratch" / request.replace("=", "")
    scratch.mkdir(parents=True)
    return fetch(parse_request(request), tmp_path / "cache", scratch, None, our_pip(tmp_path, scratch)).path


def our_pip(tmp_path: Path, scratch: Path) -> Pip:
    return Pip(sandbox_or_none(), scratch, tmp_path / "pip_cache")


def test_a_wheel_for_this_python(tmp_path: Path, offered: Path) -> None:
    make_sdist(offered, SHAPES)
    make_wheel(offered, SHAPES, tag="cp27-cp27mu-manylinux1_x86_64")
    wheel = make_wheel(offered, SHAPES)
    found = get(tmp_path, "shapes==1.0")
    assert found == tmp_path / "cache" / wheel.name
    assert open_archive(found).sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_wheel_for_another_python_is_better_than_a_source_archive(tmp_path: Path, offered: Path) -> None:
    make_sdist(offered, SHAPES)
    tags = ("cp27-cp27mu-manylinux1_x86_64", "cp37-cp37m-manylinux1_x86_64", "cp37-cp37m-win_amd64")
    for tag in tags:
        make_wheel(offered, SHAPES, tag=tag)
    assert get(tmp_path, "shapes==1.0").name == "shapes-1.0-cp37-cp37m-manylinux1_x86_64.whl"


def test_setup_py_of_a_source_archive_does_not_run(tmp_path: Path, offered: Path) -> None:
    make_sdist(offered, SHAPES)
    assert get(tmp_path, "shapes==1.0").name == "shapes-1.0.tar.gz"
    assert not (offered / "setup_ran").exists()
    (offered / "shapes-1.0.tar.gz").unlink()  # the second time it comes from the cache
    scratch = tmp_path / "again"
    scratch.mkdir()
    pip = our_pip(tmp_path, scratch)
    assert fetch(parse_request("shapes==1"), tmp_path / "cache", scratch, None, pip).version == "1.0"


def test_a_version_that_does_not_exist(tmp_path: Path, offered: Path) -> None:
    for version in ("1.16.5", "1.16.4", "2.0"):
        make_wheel(offered, SHAPES, version=version)
    with pytest.raises(DataError, match=r"no version ==1\.16\.9; versions like it: 1\.16\.\d.*the newest is 2\.0"):
        get(tmp_path, "shapes==1.16.9")


def test_a_user_without_a_home(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, for a number that no user has."""
    pwd = pytest.importorskip("pwd")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    environment, files = pip._configured()
    assert "NETRC" not in environment
    assert offered in files


class _Index(BaseHTTPRequestHandler):
    def __init__(self, pages: dict[str, tuple[str, bytes]], *args: object) -> None:
        self.pages = pages
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        kind, content = self.pages.get(self.path, ("", b""))
        self.send_response(200 if kind else 404)
        self.send_header("Content-Type", kind or "text/plain")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, tuple[str, bytes]]]]:
    pages: dict[str, tuple[str, bytes]] = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Index, pages)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", pages
        server.shutdown()


@pytest.mark.parametrize("form", ["json", "html"])
def test_indexes(tmp_path: Path, served: tuple[str, dict[str, tuple[str, bytes]]], form: str) -> None:
    url, pages = served
    content = make_sdist(tmp_path, SHAPES).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    pages["/files/shapes-1.0.tar.gz"] = ("application/octet-stream", content)
    if form == "json":
        entry = {"filename": "shapes-1.0.tar.gz", "url": "../../files/shapes-1.0.tar.gz", "hashes": {"sha256": digest}}
        odd = {"filename": "shapes-1.0.exe", "url": "x", "hashes": {}}
        page = json.dumps({"files": [entry, odd]}).encode()
        pages["/simple/shapes/"] = ("application/vnd.pypi.simple.v1+json", page)
    else:
        link = f'<a href="/files/shapes-1.0.tar.gz#sha256={digest}">shapes</a><a href="x-1.exe">x</a>'
        pages["/simple/shapes/"] = ("text/html", link.encode())
    index = PackageIndex([f"{url}/simple"], [])
    (item,) = index.files("Shapes")
    assert (item.name, item.sha256, item.is_wheel) == ("shapes-1.0.tar.gz", digest, False)
    assert index.download(item, tmp_path / "got").read_bytes() == content
    assert index.files("unknown") == []

    pages["/files/shapes-1.0.tar.gz"] = ("application/octet-stream", content + b"!")
    with pytest.raises(DataError, match="but the index says"):
        index.download(item, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*"))


def test_indexes_that_lead_elsewhere(tmp_path: Path, served: tuple[str, dict[str, tuple[str, bytes]]]) -> None:
    """To a file of this machine, or to another folder than the one to download to."""
    url, pages = served
    local = make_sdist(tmp_path, SHAPES).as_uri()
    addresses = [local, local.replace("file", "FILE"), f" {local}", "/shapes-1.0-1%2F..%2F..%2Fx-py3-none-any.whl"]
    links = "".join(f'<a href="{address}">x</a>' for address in addresses)
    pages["/simple/shapes/"] = ("text/html", links.encode())
    assert PackageIndex([f"{url}/simple"], []).files("shapes") == []
    names = ["shapes-1.0-1/../../x-py3-none-any.whl", "shapes-1.0-1\x1b[2J-py3-none-any.whl"]
    page = json.dumps({"files": [{"filename": name, "url": "x"} for name in names]}).encode()
    pages["/simple/shapes/"] = ("application/vnd.pypi.simple.v1+json", page)
    assert PackageIndex([f"{url}/simple"], []).files("shapes") == []


def test_a_yanked_version_is_taken_only_by_its_number(
    tmp_path: Path, served: tuple[str, dict[str, tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, pages = served
    for name, value in {"INDEX_URL": f"{url}/simple", "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    links = ""
    for version, mark in (("1.0", ""), ("1.1", ""), ("2.0", ' data-yanked="broken"')):
        wheel = make_wheel(tmp_path, SHAPES, version=version, tag="cp27-cp27mu-manylinux1_x86_64")
        pages[f"/files/{wheel.name}"] = ("application/octet-stream", wheel.read_bytes())
        links += f'<a href="/files/{wheel.name}"{mark}>{wheel.name}</a>'
    pages["/simple/shapes/"] = ("text/html", links.encode())
    assert get(tmp_path, "shapes").name.startswith("shapes-1.1-")
    assert get(tmp_path, "shapes==2.0").name.startswith("shapes-2.0-")


def test_an_index_that_is_not_there() -> None:
    with pytest.raises(
        DataError, match=r"no package index can be asked \(http://127\.0\.0\.1:1/simple/shapes/"
    ) as caught:
        PackageIndex(["http://user:secret@127.0.0.1:1/simple"], []).files("shapes")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "request_", "version"),
    [
        ("numpy==1.26.4", "numpy==1.26.4", "1.26.4"),
        ("Scikit_Learn == 1.5", "scikit-learn==1.5", "1.5"),
        ("sklearn==1.5.0", "scikit-learn==1.5.0", "1.5.0"),
        ("PIL", "pillow", None),
        ("cv2>=4", "opencv-python>=4", None),
        ("yaml==6.*", "pyyaml==6.*", None),
    ],
)
def test_requests(text: str, request_: str, version: str | None) -> None:
    request = parse_request(text)
    assert (str(request), request.version) == (request_, Version(version) if version else None)


@pytest.mark.parametrize(
    "text", ["", "a b", "-r x.txt", "x[extra]==1", "x @ http://y/z.whl", "x==not-a-version", "../x"]
)
def test_requests_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a package"):
        parse_request(text)


def test_other_interpreters_for_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(name: str, text: str) -> str:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
        return str(tmp_path / name)

    def fitting(tag: str, requires: str = "") -> list[str]:
        wheel = make_wheel(tmp_path, SHAPES, tag=tag, python=requires)
        return [Path(found).name for found in other_interpreters(open_archive(wheel), (3, 11))]

    found = {minor: [put(f"python3.{minor}", f"echo /opt/python3.{minor}")] for minor in (7, 8, 10, 11, 13)}
    found[9] = [put("python3.9", "exit 127")]  # a launcher of something that is not installed
    monkeypatch.setattr(environment, "installed_interpreters", lambda: found)
    assert fitting("cp38-cp38-manylinux1_x86_64") == ["python3.8"]
    assert fitting("cp38.cp310-none-any") == ["python3.10", "python3.8"]
    assert fitting("cp39-cp39-manylinux1_x86_64") == []
    assert fitting("cp36-cp36m-manylinux1_x86_64") == []
    assert fitting("cp38-abi3-manylinux1_x86_64") == ["python3.10", "python3.8", "python3.13"]
    assert fitting("py3-none-any") == ["python3.10", "python3.8", "python3.7"]
    assert fitting("py3-none-any", "<3.9") == ["python3.8", "python3.7"]
    assert fitting("py3-none-any", ">=3.12") == ["python3.13"]


def test_interpreters_are_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3.8").write_text("#!/bin/sh\n")
    (tmp_path / "python3.8").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    environment.installed_interpreters.cache_clear()
    assert str(tmp_path / "python3.8") in environment.installed_interpreters()[8]
    environment.installed_interpreters.cache_clear()


@pytest.mark.parametrize(
    ("requirement", "version", "rules"),
    [
        ("base", "2.1", ["base<2"]),
        ("base==2.*", "2.1", []),
        ("base>=1.3", "2.1", ["base<2"]),
        ("base===2.1", "2.1", ["base<2"]),
        ("base", "newest", []),
        ("base ~ 3", "2.1", []),
    ],
)
def test_older_dependencies(tmp_path: Path, requirement: str, version: str, rules: list[str]) -> None:
    for name, known, more in (("shapes", "1.0", f"Requires-Dist: {requirement}\n"), ("base", version, "")):
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {known}\n{more}"
        write_package(tmp_path, {f"{name}-{known}.dist-info/METADATA": text})
    assert older_dependencies(tmp_path, "shapes") == rules


def test_dependencies_of_the_time_of_a_release(tmp_path: Path) -> None:
    days = {
        ("shapes", "1.0"): "2020-01-10T00:00:00.5Z",
        ("base", "1.0"): "2019-12-01T00:00:00Z",
        ("base", "1.1"): "2020-02-01T10:00:00Z",
        ("base", "1.2rc1"): "2020-02-02T10:00:00Z",
        ("base", "2.0"): "2020-05-01T00:00:00Z",
        ("unmoved", "3.0"): "2019-01-01T00:00:00Z",
        ("undated", "1.0"): "",
    }

    class Index(PackageIndex):
        def files(self, distribution: str) -> list[IndexFile]:
            return [
                IndexFile(f"{name}-{version}-py3-none-any.whl", "", name, Version(version), uploaded=day)
                for (name, version), day in days.items()
                if name == distribution
            ]

    for name, version in (("shapes", "1.0"), ("base", "2.0"), ("unmoved", "3.0"), ("undated", "1.0"), ("gone", "1")):
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        write_package(tmp_path / "installed", {f"{name}-{version}.dist-info/METADATA": text})
    archive = open_archive(make_wheel(tmp_path, SHAPES))
    index = Index([], [])
    assert dependencies_of_the_time(tmp_path / "installed", archive, index) == ["base<=1.1"]
    days["shapes", "1.0"] = ""  # an index that does not say
    assert dependencies_of_the_time(tmp_path / "installed", archive, index) == []


def test_import_names(tmp_path: Path) -> None:
    files = {
        "sklearn/__init__.py": "",
        "six.py": "",
        "_private.py": "",
        "fast.cpython-311-x86_64-linux-gnu.so": "",
        "google/api/__init__.py": "",
        "google/cloud/storage/__init__.py": "",
        "tests/__init__.py": "",
        "docs/conf.py": "",
        "x-1.0.dist-info/METADATA": "",
    }
    write_package(tmp_path, files)
    assert find_import_names(tmp_path) == ["fast", "google.api", "google.cloud.storage", "six", "sklearn"]
    write_package(tmp_path, {"x-1.0.dist-info/top_level.txt": "sklearn\n_private\n"})
    assert find_import_names(tmp_path) == ["sklearn"]


def test_packages_in_a_source_archive(tmp_path: Path) -> None:
    write_package(tmp_path / "a", {"x-1.0/src/x/__init__.py": "", "x-1.0/setup.py": ""})
    write_package(tmp_path / "b", {"x-1.0/x/__init__.py": "", "x-1.0/setup.py": "", "x-1.0/tests/__init__.py": ""})
    assert find_import_names(source_root(tmp_path / "a")) == ["x"]
    assert find_import_names(source_root(tmp_path / "b")) == ["x"]
