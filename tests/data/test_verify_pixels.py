"""The options of an ingest: what is stored, kept in the manifest, and part of its identity."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pipeline.data import ingest as ingest_module
from pipeline.data.ingest import ingest
from pipeline.data.pixel_options import AS_THEY_ARE, PixelOptions
from pipeline.data.shards import Manifest, read_manifest
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.manifests import manifest as some_manifest
from tests.helpers.pictures import tiff

BANDS = PixelOptions(bands=(4, 3, 2), range=(0, 3000))
PERCENTILE = PixelOptions(bands=(4, 3, 2), range="percentile")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """20 satellite images of 5 bands: band b of image i holds 100 * i + 1000 * b, and a ramp of 0 to 99 on it."""
    ramp = np.arange(100).reshape(10, 10, 1)
    for i in range(20):
        values = (100 * i + 1000 * np.arange(5) + ramp).astype(np.uint16)
        data = tiff(values, photometric="minisblack", planarconfig="contig", compression="lzw")
        put(tmp_path / "scenes" / "field" / f"{i:02d}.tif", data)
    return tmp_path / "scenes"


def images_of(folder: Path) -> dict[str, np.ndarray]:
    rows = [row["image"] for path in folder.glob("shard-*") for row in pq.read_table(path).to_pylist()]
    return {row["path"]: np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows}


def test_options_make_pixels_of_bands_and_are_kept(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00.tif: TIFF of 5 bands, uint16; give --bands and --range"):
        ingest(str(scenes), str(tmp_path / "none"))
    manifest = ingest(str(scenes), str(tmp_path / "out"), pixels=BANDS)
    assert manifest.pixels == read_manifest(str(tmp_path / "out")).pixels == BANDS
    first = images_of(tmp_path / "out")["field/00.tif"]
    assert first[0, 0].tolist() == [255, round(2000 / 3000 * 255), round(1000 / 3000 * 255)]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rewritten_as_png"] == 20
    assert summary["pixels"]["bands"] == [4, 3, 2]


def test_other_options_are_another_data_set(scenes: Path, tmp_path: Path) -> None:
    ingest(str(scenes), str(tmp_path / "out"), pixels=BANDS)
    assert ingest(str(scenes), str(tmp_path / "out"), pixels=BANDS).num_images == 20
    other = BANDS.model_copy(update={"bands": (3, 2, 1)})
    message = (
        r"--bands 4,3,2 --range 0,3000 .*, but this command asks for --bands 3,2,1 --range 0,3000 .*choose another "
        "folder"
    )
    with pytest.raises(DataError, match=message):
        ingest(str(scenes), str(tmp_path / "out"), pixels=other)
    put(tmp_path / "plain" / "0.png", encoded())
    ingest(str(tmp_path / "plain"), str(tmp_path / "out2"))
    with pytest.raises(DataError, match=r"--background white, but this command asks for .*--background black"):
        ingest(str(tmp_path / "plain"), str(tmp_path / "out2"), pixels=PixelOptions(background="black"))


def test_work_of_other_options_is_not_resumed(scenes: Path, tmp_path: Path) -> None:
    def kill(done: int, total: int, images: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        ingest(str(scenes), str(tmp_path / "out"), pixels=BANDS, rows_per_shard=5, on_progress=kill)
    other = BANDS.model_copy(update={"range": (0, 6000)})
    ingest(str(scenes), str(tmp_path / "out"), pixels=other, rows_per_shard=5)
    ingest(str(scenes), str(tmp_path / "whole"), pixels=other, rows_per_shard=5)
    for name, pixels in images_of(tmp_path / "whole").items():
        np.testing.assert_array_equal(images_of(tmp_path / "out")[name], pixels)


def test_percentiles_are_of_the_whole_data_set_and_kept(scenes: Path, tmp_path: Path) -> None:
    put(scenes / "field" / "bad.tif", b"II*\0")
    manifest = ingest(str(scenes), str(tmp_path / "out"), pixels=PERCENTILE, rows_per_shard=4)
    assert manifest.pixels.requested == PERCENTILE
    assert manifest.pixels.measured is not None
    for (low, high), band in zip(manifest.pixels.measured, (3, 2, 1), strict=True):
        assert low == pytest.approx(1000 * band + 20, abs=5)
        assert high == pytest.approx(1000 * band + 1979, abs=5)
    shown = images_of(tmp_path / "out")
    assert shown["field/00.tif"][0, 0].tolist() == [0, 0, 0]
    assert shown["field/19.tif"][-1, -1].tolist() == [255, 255, 255]
    assert shown["field/10.tif"][0, 0].tolist() == pytest.approx([127.5] * 3, abs=2)
    assert ingest(str(scenes), str(tmp_path / "out"), pixels=PERCENTILE, rows_per_shard=4) == manifest


def test_a_killed_ingest_keeps_its_range(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*arguments: Any) -> None:
        raise InterruptedError

    whole = ingest(str(scenes), str(tmp_path / "whole"), pixels=PERCENTILE, rows_per_shard=4)
    with pytest.raises(InterruptedError):
        ingest(str(scenes), str(tmp_path / "out"), pixels=PERCENTILE, rows_per_shard=4, on_progress=kill)
    monkeypatch.setattr(ingest_module, "measure_range", kill)
    assert ingest(str(scenes), str(tmp_path / "out"), pixels=PERCENTILE, rows_per_shard=4) == whole


def test_percentiles_of_8_bits_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "f" / "0.png", encoded())
    with pytest.raises(DataError, match=r"--range percentile: no sampled image .* more than 8 bits .*leave --range"):
        ingest(str(tmp_path / "f"), str(tmp_path / "out"), pixels=PixelOptions(range="percentile"))


def test_a_constant_channel_is_only_centred(tmp_path: Path) -> None:
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        pixels[..., 2] = 77
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        put(tmp_path / "f" / f"{i}.png", buffer.getvalue())
    statistics = ingest(str(tmp_path / "f"), str(tmp_path / "out"), rows_per_shard=7).statistics
    assert (statistics.mean[2], statistics.std[2]) == (77 / 255, 0)
    assert min(statistics.std[:2]) > 0.2


def test_manifests_from_before_the_options_are_read() -> None:
    old = some_manifest().model_dump()
    del old["pixels"]
    assert Manifest.model_validate(old).pixels == AS_THEY_ARE


def test_the_command_takes_the_options(scenes: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pipeline import cli

    def refuse(*given: str) -> str:
        return str(CliRunner().invoke(cli.app, ["ingest", str(scenes), str(tmp_path / "out"), *given]).exception)

    assert "--bands '4,b'" in refuse("--bands", "4,b")
    assert "--range: 9,1 is not a range" in refuse("--range", "9,1")
    assert "--background" in refuse("--background", "blau")


@pytest.mark.slow
def test_damaged_files_are_as_pillow_says() -> None:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--count", "400", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
