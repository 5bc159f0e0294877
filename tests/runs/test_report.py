"""The atlas of a run's folder, made by hand: what is read of it, and what is written."""

from __future__ import annotations

import json
import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.read import read_chosen
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError, DataError
from pipeline.provenance import git_commit, version_of
from pipeline.runs import report as module
from pipeline.runs.identity import read_beginning, read_started_run, record_start
from pipeline.runs.names import set_names
from pipeline.runs.report import describe_origin, put_names, read_pictures, report
from pipeline.runs.train import resolve
from pipeline.storage import Folder
from tests.helpers.atlases import HISTORY, assignments, features
from tests.helpers.images import encoded, put

IMAGES, CLUSTERS, SIZE = 50, 4, 8
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder beside its data set of 50 pictures."""
    place = tmp_path_factory.mktemp("run")
    for number in range(IMAGES):
        put(place / "images" / f"{number:02}.png", encoded(5 * number, size=(40, 30)))
    manifest = ingest(str(place / "images"), str(place / "data"), rows_per_shard=20)
    config = resolve(load_config("digits", [f"data.path={place}/data", f"storage={place}", "name=run"]), "run")
    folder = Folder(str(place / "run")).make()
    folder.write("run.json", {"config": config.model_dump(mode="json"), "manifest": manifest.model_dump(mode="json")})
    folder.write("summary.json", {"alarms": [{"epoch": 1, "kind": "collapse", "text": "low"}]})
    write_results(place / "run", manifest)
    (place / "run" / "names.yaml").write_text("1: dogs\n")
    return place


def write_results(run: Path, manifest: Manifest) -> None:
    """Assignments, and features in two parts that lie in no order."""
    rows, centers = features(IMAGES, CLUSTERS, SIZE)
    images = assignments(rows, centers, labels=False)
    columns = {name: getattr(images, name) for name in module.COLUMNS[1:]}
    paths = [image["path"] for table in shards(run.parent / "data", manifest) for image in table["image"].to_pylist()]
    pq.write_table(pa.table({"index": np.arange(IMAGES), "path": paths, **columns}), run / "assignments.parquet")
    (run / "features").mkdir()
    half = rows.numpy().astype(np.float16)
    for part, index in enumerate((np.arange(30, IMAGES), np.arange(30)[::-1])):
        flat = pa.array(half[index].reshape(-1))
        table = pa.table({"index": index, "feature": pa.FixedSizeListArray.from_arrays(flat, SIZE)})
        pq.write_table(table, run / "features" / f"part-{part:05}.parquet")


def shards(data: Path, manifest: Manifest) -> list[pa.Table]:
    return list(read_chosen(str(data), manifest, np.arange(IMAGES)))


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, whose newest checkpoint is made up."""
    copy = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    _, centers = features(IMAGES, CLUSTERS, SIZE)
    monkeypatch.setattr(module, "read_values", lambda folder: {"centers": 3 * centers, "history": HISTORY})
    return copy


def page_data(run: Path) -> dict[str, Any]:
    found = re.search(r'id="atlas-data">(.*?)</script>', (run / "atlas.html").read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_report_has_a_page_and_an_embedding(run: Path) -> None:
    assert report(str(run)) == {"atlas": f"{run}/atlas.html", "embedding": f"{run}/embedding.parquet"}
    data = page_data(run)
    assert (data["title"], data["images"], data["pictures"]) == ("run", IMAGES, IMAGES)
    assert [cluster["name"] for cluster in data["clusters"]] == ["", "dogs", "", ""]
    assert data["alarms"] == [{"epoch": 1, "kind": "collapse", "text": "low"}]
    origin = dict(data["origin"])
    assert (origin["source"].endswith("images"), origin["clusters"]) == (True, str(CLUSTERS))
    assert "data.path=" in origin["settings other than defaults"]
    assert "version" not in origin  # an earlier version did not record its own
    assert sorted(data["paths"]) == [f"{number:02}.png" for number in range(IMAGES)]
    assert pq.read_table(run / "embedding.parquet").num_rows == IMAGES


def test_the_page_says_how_the_run_began_and_what_differs_from_its_preset(run: Path) -> None:
    folder = Folder(str(run))
    _, manifest = read_started_run(folder)
    config = load_config("digits", ["optim.lr=0.2", "seed=7", "name=run", "data.path=elsewhere"])
    folder.update("run.json", config=config.model_dump(mode="json"))
    record_start(folder, manifest, "digits")
    began = read_beginning(folder)
    assert (began["version"], began["commit"]) == (version_of("digpro-ray"), git_commit())
    assert abs(datetime.now(UTC) - datetime.strptime(began["time"], "%Y-%m-%d %H:%M %Z").replace(tzinfo=UTC)) < HOUR
    began |= {"time": "2026-01-02 03:04 UTC", "version": "1.2", "commit": "abc"}
    folder.update("run.json", began=began)
    record_start(folder, manifest, "photos")  # resumed by later code
    origin = dict(describe_origin(folder, *read_started_run(folder), 10))
    changed = origin["settings other than those of the preset digits"].split("\n")
    assert changed == ["seed=7", "data.path=elsewhere", "optim.lr=0.2"]
    assert [origin[key] for key in ("backbone", "seed", "run began", "version", "commit")] == [
        *("tiny", "7", "2026-01-02 03:04 UTC", "1.2", "abc")
    ]
    assert origin["page written"] > "2026-01-02"


def test_names_reach_the_page_without_decoding_a_picture_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert put_names(str(run)) is None  # no page yet
    table = pq.read_table(run / "assignments.parquet")
    assert table.column("name").to_pylist()[:2] == [None, "dogs"]
    report(str(run))
    before = page_data(run)
    monkeypatch.setattr(module, "read_pictures", None)
    (run / "clusters.json").write_text(json.dumps({"sizes": [13, 13, 12, 12]}))
    set_names(str(run), ["1=truck"])
    assert put_names(str(run)) == str(run / "atlas.html")
    after = page_data(run)
    assert [cluster["name"] for cluster in after["clusters"]][:2] == ["", "truck"]
    for cluster in (*before["clusters"], *after["clusters"]):
        cluster["name"] = ""
    assert after == before
    for file in ("assignments.parquet", "embedding.parquet"):
        table = pq.read_table(run / file)
        named = ["truck" if cluster == 1 else None for cluster in table.column("cluster").to_pylist()]
        assert table.column("name").to_pylist() == named
        assert table.num_rows == IMAGES
    (run / "atlas.html").write_text("<p>cut off")
    with pytest.raises(ConfigError, match=r"the names are saved, but .*atlas\.html is damaged"):
        put_names(str(run))


def test_the_command_label_shows_the_atlas_that_it_renamed(digpro, run: Path) -> None:
    status, printed, err = digpro("report", run)
    assert (status, err) == (0, "")
    assert printed.split() == ["atlas:", f"{run}/atlas.html", "embedding:", f"{run}/embedding.parquet"]
    (run / "clusters.json").write_text(json.dumps({"sizes": [13, 13, 12, 12]}))
    assert digpro("label", run, "1=truck") == (0, f"   1  truck\natlas: {run}/atlas.html\n", "")
    assert [cluster["name"] for cluster in page_data(run)["clusters"]][:2] == ["", "truck"]


def test_sizes_and_means_are_of_all_images_where_only_a_sample_is_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(str(run))
    whole = page_data(run)
    monkeypatch.setattr(module, "SHOWN_IMAGES", 20)
    pq.write_table(pq.read_table(run / "assignments.parquet"), run / "assignments.parquet", row_group_size=7)
    report(str(run))
    data = page_data(run)
    assert (data["images"], data["pictures"], len(data["paths"])) == (IMAGES, 20, 20)
    assert data["facts"] == whole["facts"]
    for found, expected in zip(data["clusters"], whole["clusters"], strict=True):
        for name in ("size", "outliers", "cohesion", "margin"):
            assert found[name] == expected[name]
    assert any("cover a random sample of 20." in note for note in data["notes"])
    assert not any("random sample" in note for note in whole["notes"])
    assert pq.read_table(run / "embedding.parquet").column("index").to_pylist() == list(range(20))


def test_pictures_are_those_of_the_indices(finished: Path) -> None:
    config, manifest = module.read_started_run(Folder(str(finished / "run")))
    chosen = np.array([3, 19, 20, 49])
    pictures = read_pictures(config, manifest, chosen)
    assert pictures is not None
    assert pictures.aspects.tolist() == pytest.approx([40 / 30] * 4)
    names = [shard for table in shards(finished / "data", manifest) for shard in table["image"].to_pylist()]
    for index, picture in zip(chosen, pictures.tiles, strict=True):
        assert picture.reshape(-1, 3).mean(axis=0)[0] == 5 * int(Path(names[index]["path"]).stem)


def test_without_shards_or_features_there_is_a_page_that_says_so(run: Path, finished: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "features")
    identity = json.loads((run / "run.json").read_text())
    identity["config"]["data"]["path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(identity))
    assert list(report(str(run))) == ["atlas"]
    data = page_data(run)
    assert data["pictures"] == 0
    assert any("the shards that the run was trained on no longer exist" in note for note in data["notes"])
    assert any("the run stored no features" in note for note in data["notes"])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("names.yaml", "- dogs", r"names.yaml holds a list in line 1; write lines such as `3: truck`"),
        ("names.yaml", "1: [", r"names.yaml is not YAML .*; write lines such as `3: truck`"),
        ("run.json", "{}", r"holds no run; give the folder"),
    ],
)
def test_what_a_user_can_mend_is_named(run: Path, file: str, content: str, said: str) -> None:
    (run / file).write_text(content)
    with pytest.raises(ConfigError, match=said):
        report(str(run))


def test_assignments_of_an_earlier_version_are_named(run: Path) -> None:
    pq.write_table(pa.table({"index": [0], "cluster": [0]}), run / "assignments.parquet")
    with pytest.raises(ConfigError, match=r"assignments.parquet has no column 'path': an earlier version wrote it"):
        report(str(run))
    (run / "assignments.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match=r"assignments.parquet cannot be read .*; delete summary.json beside it"):
        report(str(run))
    (run / "assignments.parquet").unlink()
    with pytest.raises(ConfigError, match=r"holds no assignments.parquet: the run has not finished"):
        report(str(run))
