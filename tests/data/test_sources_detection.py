"""What a source string or a plain path is taken for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.ingest import ingest
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.sources import labels, left_out, write_parquet, write_tar

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize(("source", "hint"), [("digit", "digits"), ("imgfolder:/x", "imagefolder"), ("/no/such", None)])
def test_unknown_sources_list_the_valid_ones(source: str, hint: str | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Valid sources: digits, imagefolder:PATH") as caught:
        ingest(source, str(tmp_path / "out"))
    assert hint is None or f"did you mean {hint!r}" in str(caught.value)


def test_a_folder_of_compressed_tars_is_recognised(tmp_path: Path) -> None:
    for name in ("x.tar.gz", "X.TGZ"):
        write_tar(tmp_path / "s" / name, {"0.png": encoded(), "0.cls": b"1"}, mode="w:gz")
    assert open_source(str(tmp_path / "s"), 10).kind == "webdataset"
    (tmp_path / "s" / "x.tar.gz").rename(tmp_path / "nosuffix")
    assert open_source(str(tmp_path / "nosuffix"), 10).kind == "webdataset"
    write_parquet(tmp_path / "t" / "x.parquet", [encoded()])
    (tmp_path / "t" / "x.parquet").rename(tmp_path / "table")
    assert open_source(str(tmp_path / "table"), 10).kind == "parquet"


def test_an_img2dataset_folder_is_recognised(tmp_path: Path) -> None:
    for shard in ("00000", "00001"):
        sample = {"caption": "a cat", "status": "success"}
        members = {f"{shard}0.jpg": encoded(kind="JPEG"), f"{shard}0.txt": b"a cat"}
        write_tar(tmp_path / "s" / f"{shard}.tar", {**members, f"{shard}0.json": json.dumps(sample).encode()})
        put(tmp_path / "s" / f"{shard}_stats.json", b"{}")
        pq.write_table(pa.table({"caption": ["a cat"]}), tmp_path / "s" / f"{shard}.parquet")
    manifest = ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    assert manifest.source.kind == "webdataset"
    assert labels(tmp_path / "out") == [("000000.jpg", -1), ("000010.jpg", -1)]
    rules = left_out(tmp_path / "out")
    assert rules["00000.parquet"] == rules["00000_stats.json"] == "not a tar file"
    assert rules["00001.tar: *.json"] == "metadata of an image, without a label"


def test_a_folder_of_several_kinds_is_not_guessed(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "x.tar", {"0.png": encoded()})
    write_parquet(tmp_path / "s" / "y.parquet", [encoded()])
    put(tmp_path / "s" / "logo.png", encoded())
    expected = r"1 for parquet:PATH \(such as 'y.parquet'\), 1 for webdataset.* 1 for imagefolder.*choose one kind"
    with pytest.raises(DataError, match=expected):
        ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    ingest(f"parquet:{tmp_path}/s", str(tmp_path / "out"))
    assert left_out(tmp_path / "out") == {"logo.png": "not a Parquet file", "x.tar": "not a Parquet file"}


def test_arrow_files_of_save_to_disk_are_named(tmp_path: Path) -> None:
    put(tmp_path / "s" / "dataset_info.json", b"{}")
    put(tmp_path / "s" / "data-00000-of-00001.arrow", b"ARROW1")
    with pytest.raises(DataError, match=r"save_to_disk.*to_parquet"):
        ingest(str(tmp_path / "s"), str(tmp_path / "out"))


def test_bad_patterns_and_sources_are_messages(tmp_path: Path) -> None:
    for source in (
        f"webdataset:{tmp_path}/{{a",
        f"{tmp_path}/*.tar",
        f"parquet:{tmp_path}/none",
        "imagefolder:",
        "\udcff",
    ):
        with pytest.raises(DataError):
            ingest(source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
