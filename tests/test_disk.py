"""Folders that land whole or not at all, on a full disk too."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from fedshield.disk import whole_folder
from fedshield.errors import RunFolderError

Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**7, 9 * 10**6, 10**6))
    with (
        pytest.raises(RunFolderError, match=r"expected 8\.4 MB of free disk space, got 1\.0 MB"),
        whole_folder(tmp_path / "a" / "out", 8_400_000),
    ):
        pytest.fail("went on")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_the_earlier_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out, 1) as part:
        (part / "file").write_text("first")
    with pytest.raises(RunFolderError, match="the disk is full; free some, or choose") as told:
        _fill(out)
    assert "\n" not in str(told.value)
    assert (out / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _fill(out: Path) -> None:
    with whole_folder(out, 1) as part:
        (part / "file").write_text("second")
        with open("/dev/full", "w") as full:  # the system's own error
            full.write("x")


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunFolderError, match="expected a place to write to"),
        whole_folder(tmp_path / "file" / "out", 1),
    ):
        pytest.fail("went on")
