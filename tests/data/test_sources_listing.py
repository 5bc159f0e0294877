"""The listing of a source on another filesystem than the local one, which pyarrow walks."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from pipeline.data.sources.listing import list_files
from pipeline.errors import DataError
from tests.helpers.images import put


def test_a_remote_folder_is_listed_by_the_same_rules(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/0.png", "a/.hidden/x.png", "Thumbs.db", "_ingest/part.parquet"):
        put(tmp_path / "s" / name, b"1234")
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    listing = list_files(remote, "s")
    assert [(file.path, file.name, file.size) for file in listing.files] == [
        ("s/a/0.png", "a/0.png", 4),
        ("s/b/1.png", "b/1.png", 4),
    ]
    assert {entry.path for entry in listing.left_out} == {"a/.hidden/x.png", "Thumbs.db", "_ingest/part.parquet"}
    assert listing.seen == 5


def test_a_remote_root_may_be_a_file_or_absent(tmp_path: Path) -> None:
    put(tmp_path / "x.tar", b"1234")
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert [(file.path, file.name) for file in list_files(remote, "x.tar").files] == [("x.tar", "x.tar")]
    with pytest.raises(DataError, match=r"'none' does not exist; give a path that does"):
        list_files(remote, "none")
