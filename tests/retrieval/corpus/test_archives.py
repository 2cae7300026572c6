"""Archives that are not what they should be are refused, by the name of the member."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import UnpackLimits, unpack, unpack_wheels
from tests.retrieval.corpus.wheels import SHAPES, make_sdist, make_wheel


def test_a_wheel_is_unpacked_as_far_as_it_is_read(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {**SHAPES, "shapes/data.bin": "x" * 100, "shapes/_fast.cpython-311-x.so": "\x7fELF"})
    unpack(wheel, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    info = {f"shapes-1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    assert found == {*SHAPES, *info, "shapes/_fast.cpython-311-x.so"}
    assert (tmp_path / "out/shapes/_fast.cpython-311-x.so").stat().st_size == 0
    assert "面积" in (tmp_path / "out/shapes/_impl.py").read_text("utf-8")


def test_a_source_archive_is_unpacked(tmp_path: Path) -> None:
    unpack(make_sdist(tmp_path, SHAPES), tmp_path / "out")
    assert (tmp_path / "out/shapes-1.0/shapes/extra.py").read_text().startswith('"""More."""')


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil.py", "leaves the target folder"),
        ("a/../../evil.py", "leaves the target folder"),
        ("/etc/evil.py", "absolute or foreign"),
        ("C:/evil.py", "absolute or foreign"),
        ("a\\..\\evil.py", "absolute or foreign"),
        ("a/" * 50 + "deep.py", "too long"),
        ("n" * 300 + ".py", "too long"),
    ],
)
def test_paths_that_lead_elsewhere(tmp_path: Path, member: str, reason: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("good.py", "x = 1")
        archive.writestr(member, "x = 1")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    for name in ("bad.whl", "bad.tar.gz"):
        with pytest.raises(DataError, match=reason) as caught:
            unpack(tmp_path / name, tmp_path / "target" / "inner")
        assert name in str(caught.value)
        assert member[:100] in str(caught.value).replace("\\\\", "\\")
    assert {path.name for path in tmp_path.rglob("*.py")} == {"good.py"}


def test_links_in_a_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        link = zipfile.ZipInfo("link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"'link\.py' is a link"):
        unpack(tmp_path / "bad.whl", tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside.py"])
def test_links_out_of_a_source_archive(tmp_path: Path, kind: bytes, target: str) -> None:
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("a/link.py")
        entry.type, entry.linkname = kind, target
        tar.addfile(entry)
    with pytest.raises(DataError, match=r"'a/link.py' is a link out of the archive"):
        unpack(tmp_path / "bad.tar.gz", tmp_path / "out")


def test_links_inside_a_source_archive_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("a/link.py")
        entry.type, entry.linkname = tarfile.SYMTYPE, "../real.py"
        tar.addfile(entry)
        real = tarfile.TarInfo("real.py")
        real.size = 1
        tar.addfile(real, io.BytesIO(b"x"))
    unpack(tmp_path / "good.tar.gz", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["real.py"]


def test_devices_in_a_source_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        entry = tarfile.TarInfo("pipe.py")
        entry.type = tarfile.FIFOTYPE
        tar.addfile(entry)
    with pytest.raises(DataError, match=r"'pipe.py' is a special file"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")


SMALL = UnpackLimits(members=10, member_bytes=2_000_000, total_bytes=3_000_000, ratio=100, ratio_from=1_000_000)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([1_500_000], "100 times its packed size"),
        ([10] * 11, "'m10.py' is beyond the 10 members"),
    ],
)
def test_bombs(tmp_path: Path, sizes: list[int], reason: str) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, size in enumerate(sizes):
            archive.writestr(f"m{number}.py", b"0" * size)
    with pytest.raises(DataError, match=reason):
        unpack(tmp_path / "bomb.whl", tmp_path / "out", SMALL)


def test_sizes_in_all(tmp_path: Path) -> None:
    limits = UnpackLimits(total_bytes=3_000)
    with zipfile.ZipFile(tmp_path / "large.whl", "w") as archive:
        for number in range(4):
            archive.writestr(f"m{number}.py", b"0" * 1000)
    with pytest.raises(DataError, match=r"'m3.py' is beyond the 3,000 bytes"):
        unpack(tmp_path / "large.whl", tmp_path / "out", limits)


@pytest.mark.parametrize("form", ["whl", "tar.gz"])
@pytest.mark.parametrize("name", ["data.bin", "fast.so", "a/b.pth"])
def test_members_that_are_not_read_count_as_well(tmp_path: Path, form: str, name: str) -> None:
    limits = UnpackLimits(total_bytes=3_000)
    path = tmp_path / f"large.{form}"
    if form == "whl":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(4):
                archive.writestr(f"{number}{name}", b"0" * 1000)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for number in range(4):
                entry = tarfile.TarInfo(f"{number}{name}")
                entry.size = 1000
                tar.addfile(entry, io.BytesIO(bytes(1000)))
    with pytest.raises(DataError, match=f"'3{name}' is beyond the 3,000 bytes"):
        unpack(path, tmp_path / "out", limits)


def test_wheels_are_unpacked_to_one_folder(tmp_path: Path) -> None:
    files = {
        "shapes/__init__.py": "",
        "shapes/data.bin": "x" * 10,
        "shapes-1.0.data/purelib/extra.py": "x = 1",
        "shapes-1.0.data/platlib/shapes/_fast.so": "\x7fELF",
        "shapes-1.0.data/scripts/shapes": "#!python",
        "shapes-1.0.data/data/etc/shapes.cfg": "",
    }
    one, two = make_wheel(tmp_path, files), make_wheel(tmp_path, {"other.py": ""}, name="other")
    unpack_wheels([one, two], tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = {name for name in found if ".dist-info/" not in name}
    assert names == {"shapes/__init__.py", "shapes/data.bin", "extra.py", "shapes/_fast.so", "other.py"}
    assert (tmp_path / "out/shapes/_fast.so").read_bytes() == b"\x7fELF"
    assert "shapes-1.0.dist-info/METADATA" in found


def test_the_limits_of_wheels_hold_for_all_of_them(tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, {f"{name}.py": "#" * 2000}, name=name) for name in ("one", "two")]
    with pytest.raises(DataError, match=r"two-1\.0-py3-none-any\.whl: member 'two\.py' is beyond the 4,000 bytes"):
        unpack_wheels(wheels, tmp_path / "out", UnpackLimits(total_bytes=4_000))
    with pytest.raises(DataError, match=r"two-1\.0.* is beyond the 6 members"):
        unpack_wheels(wheels, tmp_path / "out", UnpackLimits(members=6))
    bad = make_wheel(tmp_path, {"x-1.0.data/purelib/../../../evil.py": ""}, name="bad")
    with pytest.raises(DataError, match="leaves the target folder"):
        unpack_wheels([bad], tmp_path / "deep/out")
    absolute = make_wheel(tmp_path, {"x-1.0.data/purelib//etc/evil.py": ""}, name="bad")
    with pytest.raises(DataError, match="absolute or foreign"):
        unpack_wheels([absolute], tmp_path / "deep/out")


def test_the_size_of_what_is_written_counts_and_not_what_the_archive_says(tmp_path: Path) -> None:
    path = tmp_path / "lie.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lie.py", b"0" * 100_000)
    content = bytearray(path.read_bytes())
    for header, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # the unpacked size, in both headers
        start = content.index(header) + place
        content[start : start + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="lie"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out/lie.py").exists() or (tmp_path / "out/lie.py").stat().st_size <= 10


def _wrong_checksum(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", "value = 1")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"value = 1", b"value = 2"))


def _cut(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("a.py")
        entry.size = 200_000
        tar.addfile(entry, io.BytesIO(bytes(i * 7 % 251 for i in range(200_000))))
    path.write_bytes(path.read_bytes()[:600])


def _no_archive(path: Path) -> None:
    path.write_bytes(b"not found")


@pytest.mark.parametrize(
    ("name", "make"), [("crc.whl", _wrong_checksum), ("cut.tar.gz", _cut), ("page.whl", _no_archive)]
)
def test_damage(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        unpack(tmp_path / name, tmp_path / "out")


def _bad_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("éé.py", "")
    path.write_bytes(path.read_bytes().replace("éé".encode(), b"\xff\xfe\xff\xfe"))


def _bad_number(path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("a.py")
        entry.pax_headers = {"GNU.sparse.size": "many"}
        tar.addfile(entry)


@pytest.mark.parametrize(("name", "make"), [("text.whl", _bad_text), ("number.tar.gz", _bad_number)])
def test_what_the_libraries_do_not_expect(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        unpack(tmp_path / name, tmp_path / "out")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Old source archives have them, for documentation and tests."""
    with tarfile.open(tmp_path / "old.tar.gz", "w:gz", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("old-1.0/café.txt", "old-1.0/old.py"):
            tar.addfile(tarfile.TarInfo(name))
    unpack(tmp_path / "old.tar.gz", tmp_path / "out")
    assert (tmp_path / "out/old-1.0/old.py").exists()


def test_folders_count_as_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "deep.whl", "w") as archive:
        archive.writestr("a/b/c/x.py", "")
        archive.writestr("a/b/c/y.py", "")
    unpack(tmp_path / "deep.whl", tmp_path / "out", UnpackLimits(members=5))
    with pytest.raises(DataError, match="beyond the 4 members"):
        unpack(tmp_path / "deep.whl", tmp_path / "out", UnpackLimits(members=4))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_all_at_once(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "odd.whl", "w", method) as archive:
        archive.writestr("a.py", "")
    with pytest.raises(DataError, match=r"'a\.py' is packed in another way than wheels are"):
        unpack(tmp_path / "odd.whl", tmp_path / "out")
    with tarfile.open(tmp_path / "odd.tar.gz", "w:bz2") as tar:
        tar.addfile(tarfile.TarInfo("a.py"))
    with pytest.raises(DataError, match="is damaged"):
        unpack(tmp_path / "odd.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    size = 2**21
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("header")
        entry.type, entry.size = kind, size
        tar.addfile(entry, io.BytesIO(bytes(size)))
    with pytest.raises(DataError, match="a header of 2,097,152 bytes"):
        unpack(tmp_path / "bad.tar.gz", tmp_path / "out")
