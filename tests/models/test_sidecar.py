"""The sidecar file."""

import json
from dataclasses import replace

import pytest

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.sidecar import (
    FORMAT_VERSION,
    RopeSettings,
    Sidecar,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from tests.disks import room_for

STORED = RopeSettings(
    ratio=0.25, mode="additive", pairs="interleaved", branch_stride=0, branch_range=8, visibility="columnar"
)
SIDECAR = Sidecar(rope=STORED, rank=4, base_model="some/model")


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("ratio", 1.5, "--rope_2d_ratio"),
        ("ratio", float("nan"), "--rope_2d_ratio"),
        ("ratio", True, "--rope_2d_ratio"),
        ("mode", "both", "--rope_2d_mode"),
        ("pairs", "high", "--rope_2d_pairs"),
        ("branch_stride", -1, "--branch_stride"),
        ("branch_stride", 1.5, "--branch_stride"),
        ("branch_range", 0, "--branch_range"),
        ("visibility", "all", "--visibility"),
    ],
)
def test_invalid_settings_name_their_flag(field, value, flag):
    with pytest.raises(SettingsError, match=flag):
        RopeSettings(**{field: value})


@pytest.mark.parametrize("rope", [STORED, None])
@pytest.mark.parametrize("name", ["step.100.pth", "folder", "v1.5"])
def test_written_sidecar_is_read_back(tmp_path, name, rope):
    sidecar = Sidecar(rope=rope, rank=4, base_model="some/model")
    written = write_sidecar(tmp_path / name, sidecar)
    assert written == sidecar_path(tmp_path / name)
    assert read_sidecar(tmp_path / name) == sidecar


def test_place_of_the_sidecar(tmp_path):
    assert sidecar_path(tmp_path / "x.pth") == tmp_path / "x.parallelmind.json"
    assert sidecar_path(tmp_path / "x") == tmp_path / "x" / "parallelmind.json"
    (tmp_path / "folder.pth").mkdir()
    assert sidecar_path(tmp_path / "folder.pth") == tmp_path / "folder.pth" / "parallelmind.json"


def test_no_sidecar_is_none(tmp_path):
    assert read_sidecar(tmp_path / "x.pth") is None
    assert read_sidecar(tmp_path / "folder") is None


def edited(**changes):
    content = json.loads(
        json.dumps(
            {"rope": vars(STORED), "rank": 4, "base_model": "m", "quantization": "", "format_version": FORMAT_VERSION}
        )
    )
    for name, value in changes.items():
        place, _, leaf = name.rpartition("__")
        target = content[place] if place else content
        if value is ...:
            del target[leaf]
        else:
            target[leaf] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[]", "JSON object"),
        (edited(rank=...), "'rank'"),
        (edited(rank="4"), "'rank'"),
        (edited(rank=True), "'rank'"),
        (edited(rank=0), "'rank'"),
        (edited(base_model=None), "'base_model'"),
        (edited(quantization=...), "'quantization'"),
        (edited(quantization=4), "'quantization'"),
        (edited(format_version=FORMAT_VERSION + 1), "'format_version'"),
        (edited(format_version=0), "'format_version'"),
        (edited(rope=3), "'rope'"),
        (edited(rope__mode=...), "'mode'"),
        (edited(rope__ratio=2), "'rope.ratio'"),
        (edited(rope__ratio="0.5"), "'rope.ratio'"),
        (edited(rope__mode=["split"]), "'rope.mode'"),
        (edited(rope__branch_stride=1.5), "'rope.branch_stride'"),
        (edited(rope__branch_range=0), "'rope.branch_range'"),
        (edited(rope__branch_range=...), "'branch_range'"),
        (edited(rope__new_setting=1), "'new_setting'"),
        (edited(surprise=1), "'surprise'"),
        (" " * 2_000_000, "larger than"),
    ],
)
def test_untrusted_sidecar_names_file_and_field(tmp_path, text, named):
    path = tmp_path / "x.parallelmind.json"
    path.write_text(text)
    with pytest.raises(AdapterError) as error:
        read_sidecar(tmp_path / "x.pth")
    assert str(path) in str(error.value)
    assert named in str(error.value)


def test_failed_write_keeps_the_former_sidecar(tmp_path):
    write_sidecar(tmp_path / "x.pth", SIDECAR)
    with room_for(20), pytest.raises(AdapterError, match="File too large"):
        write_sidecar(tmp_path / "x.pth", Sidecar(rope=None, rank=8, base_model=""))
    assert read_sidecar(tmp_path / "x.pth") == SIDECAR
    assert [path.name for path in tmp_path.iterdir()] == ["x.parallelmind.json"]


def test_a_sidecar_from_before_the_branch_range_is_read(tmp_path):
    content = json.loads(edited(rope__branch_range=...)) | {"format_version": 1}
    (tmp_path / "x.parallelmind.json").write_text(json.dumps(content))
    assert read_sidecar(tmp_path / "x.pth").rope == replace(STORED, branch_range=None)
