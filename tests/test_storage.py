"""Folders, local and remote, and what is written into them whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.storage import Folder, check_writable


def test_looking_at_a_folder_does_not_make_it(tmp_path: Path) -> None:
    assert Folder(str(tmp_path / "absent")).read("run.json") is None
    (tmp_path / "file").touch()
    assert Folder(str(tmp_path / "file")).read("run.json") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run")).make()
    folder.write("x.json", {"a": 1, "b": 2})
    folder.update("x.json", b=3, c=4)
    assert folder.read("x.json") == {"a": 1, "b": 3, "c": 4}
    assert [path.name for path in Path(folder.root).iterdir()] == ["x.json"]


def test_a_folder_knows_its_parts(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/runs/mine/")
    assert (folder.name, folder.parent_root, folder.root) == ("mine", f"{tmp_path}/runs", f"{tmp_path}/runs/mine")
    assert folder.is_local
    assert folder.subfolder("evaluation").path == f"{tmp_path}/runs/mine/evaluation"
    remote = Folder("mock://bucket/runs/mine")
    assert (remote.name, remote.is_local, remote.path) == ("mine", False, "mock://bucket/runs/mine")


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ConfigError, match=r"x\.json is damaged"):
        Folder(str(tmp_path)).read("x.json")


def test_storage_is_probed_and_left_clean(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new" / "runs"))
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"storage='.*file/runs' cannot be written \(.*\); set storage to"):
        check_writable(str(tmp_path / "file" / "runs"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_writers_that_meet_do_not_mix(tmp_path: Path) -> None:
    """Parallel trials, for one, write the neighbours of one cache; the last one that ends wins."""
    folder = Folder(str(tmp_path))
    with folder.open_output("x") as first, folder.open_output("x") as second:
        first.write(b"a" * 9)
        second.write(b"b" * 5)
        first.write(b"a" * 9)
    assert (tmp_path / "x").read_bytes() == b"a" * 18
    assert folder.names() == ["x"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("x", b"old")
    with pytest.raises(TypeError), folder.open_output("x") as stream:
        stream.write("half of a")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_what_a_killed_writer_left_is_passed_over_and_deleted(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("part-0.json", {})
    (tmp_path / ".unfinished-0123-part-1.json").write_text("half of")
    assert folder.names() == ["part-0.json"]
    folder.delete_unfinished()
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.json"]
