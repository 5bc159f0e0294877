"""Assigning images: one file from each part, whatever is wrong with some of the images; and kept when it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ray import cloudpickle

from pipeline.data.decode import decode
from pipeline.data.ingest import ingest
from pipeline.data.pixel_options import AS_THEY_ARE
from pipeline.data.shards import LeftOut, Quarantined, read_manifest
from pipeline.data.sources import open_source
from pipeline.inference import assign as module
from pipeline.inference.assign import PARTS, REPORTS, Assigner, AssignJob, AssignReport, rename_clusters
from pipeline.inference.image_parts import EncodedImage, ImageParts, shard_parts, source_parts
from pipeline.inference.predict import predict
from pipeline.storage import Folder
from tests.helpers.models import DECODING, card, cluster_model
from tests.helpers.pictures import quadrants, saved, stored

PICTURE = saved(Image.fromarray(quadrants()), "PNG")


def assigned(part: Any, folder: Path, **options: Any) -> tuple[AssignReport, Any]:
    """The report and the rows of one part."""
    for name in (PARTS, REPORTS):
        Folder(str(folder)).subfolder(name).make()
    actor = Assigner(AssignJob(cluster_model, card(options.pop("names", None)), 4, str(folder), **options))
    actor({"number": 0, "part": cloudpickle.dumps(part)})
    report = AssignReport.model_validate(Folder(str(folder)).subfolder(REPORTS).read("part-00000.json"))
    file = folder / PARTS / "part-00000.parquet"
    return report, pq.read_table(file) if file.exists() else None


def entries(*items: Any) -> Iterator[Any]:
    yield from items


def images(count: int) -> list[EncodedImage]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
    return [EncodedImage(saved(Image.fromarray(p), "PNG"), f"{i}.png", i % 3, i) for i, p in enumerate(pixels)]


def test_rows_are_what_the_model_says_of_each_image(tmp_path: Path) -> None:
    rows = images(11)
    report, table = assigned(partial(list, rows), tmp_path, features=True, classes=True, names={1: "one"})
    block = torch.stack([decode(row.data, **DECODING).permute(1, 2, 0) for row in rows])
    with torch.inference_mode():
        similarities, features = cluster_model()(block)
    expected = predict(similarities)
    assert table.column("index").to_pylist() == list(range(11))
    assert table.column("path").to_pylist() == [row.path for row in rows]
    assert table.column("label").to_pylist() == [row.label for row in rows]
    assert table.column("cluster").to_pylist() == expected.cluster.tolist()
    assert table.column("runner_up").to_pylist() == expected.runner_up.tolist()
    assert table.column("name").to_pylist() == ["one" if c == 1 else None for c in expected.cluster.tolist()]
    np.testing.assert_allclose(table.column("similarity").to_numpy(), expected.similarity, atol=1e-5)
    np.testing.assert_allclose(table.column("margin").to_numpy(), expected.margin, atol=1e-5)
    np.testing.assert_allclose(table.column("outlier").to_numpy(), (0.5 - expected.similarity) / 0.5, atol=1e-5)
    np.testing.assert_allclose(np.array(table.column("feature").to_pylist()), features, atol=1e-3)
    assert report.images == sum(report.sizes) == 11
    assert report.similarity == pytest.approx(float(expected.similarity.sum()), abs=1e-4)


def test_names_can_change_without_the_model(tmp_path: Path) -> None:
    _, before = assigned(partial(list, images(11)), tmp_path, features=True, classes=True)
    cluster = before.column("cluster").to_pylist()
    for names in ({1: "one"}, {0: "zero", 1: "two"}, {}):
        rename_clusters(Folder(str(tmp_path)), card(names))
        (part,) = (tmp_path / PARTS).iterdir()
        table = pq.read_table(part)
        expected = [names.get(number) for number in cluster]
        assert not names or table.column("name").to_pylist() == expected
        assert (table.drop_columns("name") if names else table) == before


def test_bad_images_are_listed_and_cost_no_others(tmp_path: Path) -> None:
    good = images(6)
    damaged = EncodedImage(good[0].data[:60], "cut.png", -1, 7)
    listed = (Quarantined(path="lost.png", reason="cannot be read"), LeftOut(path="notes.txt", rule="text", files=2))
    report, table = assigned(partial(entries, *good[:3], damaged, *listed, *good[3:]), tmp_path)
    assert table.column("path").to_pylist() == [row.path for row in good]
    assert {bad.path for bad in report.bad} == {"cut.png", "lost.png"}
    assert (report.images, report.bad_count, report.left_out, report.seen) == (6, 2, 2, 10)


def test_a_piece_without_an_image_writes_no_part_and_is_done(tmp_path: Path) -> None:
    report, table = assigned(partial(entries, Quarantined(path="x", reason="gone")), tmp_path)
    assert table is None
    assert report.bad_count == 1


def test_a_raw_source_is_read_as_an_ingest_reads_it(tmp_path: Path) -> None:
    """A photograph with an orientation, and one with transparency, beside a plain one and a text."""
    photos = tmp_path / "photos"
    photos.mkdir()
    turned = Image.fromarray(stored(quadrants(), 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    (photos / "turned.jpg").write_bytes(saved(turned, "JPEG", exif=exif, quality=95))
    clear = Image.fromarray(quadrants()).convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 24).astype(np.uint8), (16, 1))))
    (photos / "clear.png").write_bytes(saved(clear, "PNG"))
    (photos / "plain.png").write_bytes(PICTURE)
    (photos / "notes.txt").write_text("not an image")
    source = f"imagefolder:{photos}"
    ingest(source, str(tmp_path / "shards"))
    (raw,) = source_parts(open_source(source, 100), AS_THEY_ARE).parts
    (shards,) = shard_parts(str(tmp_path / "shards"), read_manifest(str(tmp_path / "shards"))).parts
    first, second = (assigned(part, tmp_path / name)[1].sort_by("path") for name, part in (("a", raw), ("b", shards)))
    assert first.drop(["index"]).equals(second.drop(["index"]))
    assert first.column("index").to_pylist() == [None] * 3


def test_pieces_cover_the_shards_once(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path), rows_per_shard=700)
    given = shard_parts(str(tmp_path), read_manifest(str(tmp_path)))
    found = [row.index for part in given.parts for row in part() if isinstance(row, EncodedImage)]
    assert found == list(range(1797))
    assert len(given.parts) >= 50


def test_only_pieces_without_a_report_are_assigned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ImageParts("some", "stamp", tuple(partial(list, images(number)) for number in (3, 4, 5)), 12, ())
    out = Folder(str(tmp_path))
    job = AssignJob(cluster_model, card(), 4, str(tmp_path))
    actor, done = Assigner(job), list[int]()
    out.subfolder(PARTS).make()
    out.subfolder(REPORTS).make()
    actor({"number": 1, "part": cloudpickle.dumps(given.parts[1])})

    class Here:
        """Ray's data set, in this process."""

        def __init__(self, given: ImageParts, numbers: list[int], _: AssignJob) -> None:
            self.rows = [{"number": number, "part": cloudpickle.dumps(given.parts[number])} for number in numbers]

        def iter_rows(self) -> Iterator[dict[str, Any]]:
            for row in self.rows:
                done.append(row["number"])
                yield actor(row)

    monkeypatch.setattr(module, "_assigned", Here)
    reports = list(module.assign(given, job, lambda line: None))
    assert done == [0, 2]
    assert [report.images for report in reports] == [3, 4, 5]
    assert pq.read_table(tmp_path / PARTS).num_rows == 12
