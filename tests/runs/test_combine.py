"""The consensus of several runs: its clusters and model, a run like any other, and what cannot be combined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pipeline.build import build_model, build_preprocess
from pipeline.cli import main
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import RowRange
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.ingest import ingest
from pipeline.data.read import read_labels, read_sample
from pipeline.data.shards import read_manifest
from pipeline.errors import ConfigError
from pipeline.inference.consensus import side_by_side
from pipeline.inference.model import ClusterModel
from pipeline.inference.run_features import features_of, read_features, write_features
from pipeline.method.losses import unit
from pipeline.runs.artifacts import send_names
from pipeline.runs.combine import combine, consensus_centers, consensus_tables
from pipeline.runs.export import export
from pipeline.runs.identity import claim_folder, record_start
from pipeline.runs.models import open_model
from pipeline.runs.names import set_names
from pipeline.runs.report import put_names, report
from pipeline.runs.sort import Choice, sort_images
from pipeline.runs.start_from import settings_of
from pipeline.runs.train import resolve, train
from pipeline.storage import Folder, join
from tests.helpers.checkpoints import register_checkpoint
from tests.helpers.runs import SETTINGS
from tests.helpers.s3 import KEYS, S3Server

IMAGES, K = 150, 10
ROUNDING = 2e-3  # of the stored features, which are float16
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits and three runs on them, whose networks are not trained."""
    place = tmp_path_factory.mktemp("combine")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:IMAGES], digits.target[:IMAGES], strict=True)):
        picture = place / "images" / str(label) / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels * 15).repeat(2, 0).repeat(2, 1)).save(picture)
    ingest(f"imagefolder:{place}/images", str(place / "digits"))
    for seed in range(3):
        make_member(settled(place, f"seed-{seed}", f"seed={seed}"))
    return place


def settled(place: Path, name: str, *more: str) -> RunConfig:
    own = [f"storage={place}/runs", f"data.path={place}/digits", f"name={name}", *more]
    return resolve(load_config("digits", [*SETTINGS, "tracking.enabled=false", *own]), "run")


def make_member(config: RunConfig) -> None:
    manifest = read_manifest(config.data.path)
    model = build_model(config, K, torch.device("cpu"))
    target = model.networks.target.train()
    with torch.no_grad():
        for _ in range(30):  # statistics of batch normalisation: without them, all features are nearly the same
            target(build_preprocess(config, manifest)(images(config)))
    values = {"model": model.state_dict(), "backbone": {}, "history": [], "epoch": 3, "step": 0}
    with torch.inference_mode():
        features = ClusterModel(config, manifest, values | {"centers": torch.eye(K, 32)})(images(config))[1]
    centers = spherical_kmeans(features, K, restarts=2, seed=config.seed).centers
    folder = claim_folder(config)
    record_start(folder, manifest)
    write_features(folder, features, centers, RowRange(0, len(features), len(features)))
    register_checkpoint(Path(folder.root), values | {"centers": centers}, config)


def images(config: RunConfig) -> Tensor:
    """All images uint8 (n, S, S, 3) in order of the index."""
    table = read_sample(config.data.path, read_manifest(config.data.path), 10**6)
    return torch.from_numpy(decode_table(table, **config.data.decoding)["image"])


def members(place: Path) -> list[str]:
    return [f"{place}/runs/seed-{seed}" for seed in range(3)]


def column(run: str, name: str) -> Array:
    return pq.read_table(f"{run}/assignments.parquet").column(name).to_numpy()


def test_a_consensus_is_a_run_like_any_other(place: Path, tmp_path: Path) -> None:
    (place / "runs" / "seed-0" / "names.yaml").write_text("3: threes\n")
    out = str(place / "runs" / "consensus")
    summary = combine(members(place), out, echo=lambda line: None)
    cluster, agreement = column(out, "cluster"), column(out, "agreement")
    assert set(np.round(3 * agreement).tolist()) <= {0, 1, 2, 3}
    assert summary["metrics"]["agreement"] == pytest.approx(agreement.mean())
    expected = adjusted_rand_score(read_labels(f"{place}/digits"), cluster)
    assert summary["scores"]["ari"] == pytest.approx(expected, abs=1e-6)
    for name in ("atlas", "clusters", "assignments", "summary", "embedding"):
        assert Path(summary["outputs"][name]).is_file()
    assert "curves" not in summary["outputs"]

    model = open_model(out)
    with torch.inference_mode():
        similarities, features = model.module(images(settled(place, "seed-0")))
    clear = column(out, "margin") > ROUNDING
    assert clear.mean() > 0.8
    assert np.array_equal(similarities.argmax(1).numpy()[clear], cluster[clear])
    torch.testing.assert_close(features, read_features(Folder(out)), atol=ROUNDING, rtol=0)
    assert model.card.names == {3: "threes"}
    assert set(column(out, "name")[cluster == 3]) == {"threes"}

    page = Path(report(out)["atlas"]).read_text()
    assert json.dumps(["combines", "\n".join(members(place))], separators=(",", ":")) in page
    sort_images(out, str(tmp_path / "sorted"), Choice(top=2), echo=lambda line: None)
    assert len(list((tmp_path / "sorted").glob("*/*"))) == 2 * K
    for kind in ("safetensors", "onnx"):
        exported = export(out, kind, str(tmp_path / kind))
        assert all(Path(place).is_file() for place in exported.values())


def test_the_same_call_shows_it_and_others_do_not_touch_it(place: Path) -> None:
    out, lines = str(place / "runs" / "again"), list[str]()
    summary = combine(members(place), out, echo=lines.append)
    written = (place / "runs" / "again" / "run.json").stat().st_mtime_ns
    assert combine(members(place), out, echo=lines.append) == json.loads(json.dumps(summary))
    assert lines[-1] == f"{out} already holds the consensus of these runs"
    with pytest.raises(ConfigError, match=r"again holds the consensus of .*seed-0, .*; choose another folder"):
        combine(members(place)[:2], out)
    with pytest.raises(ConfigError, match="seed-1 holds another run; choose another folder"):
        combine(members(place), members(place)[1])
    with pytest.raises(ConfigError, match=r"again is the consensus of other runs; give another name"):
        train(settled(place, "again"))
    with pytest.raises(ConfigError, match=r"again is the consensus of several runs; start from one of its members"):
        settings_of(out, [])
    with pytest.raises(ConfigError, match=r"again is itself a consensus; give its members instead"):
        combine([out, *members(place)], str(place / "runs" / "twice"))
    assert (place / "runs" / "again" / "run.json").stat().st_mtime_ns == written


def test_a_call_that_was_killed_is_repeated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = str(place / "runs" / "whole")
    combine(members(place), whole, echo=lambda line: None)
    killed = str(place / "runs" / "killed")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.combine.write_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            combine(members(place), killed, echo=lambda line: None)
    combine(members(place), killed, echo=lambda line: None)
    assert np.array_equal(column(killed, "cluster"), column(whole, "cluster"))


def test_a_consensus_lies_in_a_bucket_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    combine(members(place), str(place / "runs" / "local"), echo=lambda line: None)
    with S3Server() as server:
        out = server.uri("/runs/consensus")
        summary = combine(members(place), out, echo=lambda line: None)
        assert summary["outputs"]["atlas"] == join(out, "atlas.html")
        table = pq.read_table(f"{Folder(out).root}/assignments.parquet", filesystem=Folder(out).files)
        assert np.array_equal(table.column("cluster").to_numpy(), column(f"{place}/runs/local", "cluster"))
        assert len(open_model(out).card.clusters.sizes) == K


def test_names_reach_the_copies_in_mlflow(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, lines = f"sqlite:///{tmp_path}/mlflow.db", list[str]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    make_member(settled(place, "tracked", "seed=3", "tracking.enabled=true", f"tracking.uri={uri}"))
    out = str(place / "runs" / "recorded")
    run_id = combine([f"{place}/runs/tracked", members(place)[0]], out, echo=lambda line: None)["mlflow"]["run_id"]
    client = MlflowClient(uri)
    ended = client.get_run(run_id).info.end_time
    assert client.get_run(run_id).data.metrics["agreement"] > 0.1
    assert open_model(run_id).card.names == {}

    set_names(out, ["3=threes"], lines.append)
    put_names(out)
    send_names(out, lines.append)
    assert lines[-1] == f"the names were sent to MLflow at {uri}, too"
    assert open_model(run_id).card.names == {3: "threes"}
    artifacts = client.download_artifacts(run_id, "assignments.parquet", str(tmp_path))
    assert "threes" in pq.read_table(artifacts).column("name").to_pylist()
    assert "threes" in Path(client.download_artifacts(run_id, "atlas.html", str(tmp_path))).read_text()
    assert client.get_run(run_id).info.end_time == ended

    (Path(out) / "consensus" / "state.pt").unlink()
    send_names(out, lines.append)
    assert lines[-1].startswith("MLflow's copies keep the earlier names: checkpoint ")


def test_names_of_a_run_without_records_are_sent_nowhere(place: Path) -> None:
    lines = list[str]()
    combine(members(place), str(place / "runs" / "unrecorded"), echo=lambda line: None)
    send_names(str(place / "runs" / "unrecorded"), lines.append)
    send_names(members(place)[0], lines.append)
    assert lines == []


def test_centres_are_the_means_of_what_most_members_put_together() -> None:
    """The third cluster has no vote."""
    rows = unit(torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1]]))
    centers = consensus_centers(iter(rows.split(2)), np.array([0, 0, 1, 1, 0]), 3)
    expected = torch.stack([unit(2 * rows[0] + rows[4]), rows[2], torch.zeros(4)])
    torch.testing.assert_close(centers, expected)


def test_a_consensus_keeps_what_its_model_sees_beside_what_its_members_clustered(tmp_path: Path) -> None:
    """Members that cluster by several views, and others."""
    draw = torch.Generator().manual_seed(0)
    by_views, seen, plain = (unit(torch.randn(9, 4, generator=draw)) for _ in range(3))
    members, rows = [Folder(str(tmp_path / name)) for name in ("views", "plain")], RowRange(0, 9, 9)
    write_features(members[0], by_views, torch.eye(4), rows, seen)
    write_features(members[1], plain, torch.eye(4), rows)
    centers = unit(torch.randn(4, 8, generator=draw))
    (table,) = consensus_tables(members, np.zeros((2, 9), np.int32), centers)
    for column, of_first in (("", by_views), ("seen_", seen)):
        joint = side_by_side([of_first, plain])
        np.testing.assert_allclose(features_of(table, f"{column}feature"), joint, atol=1e-3)
        assert table.column(f"{column}cluster").to_pylist() == (joint @ centers.T).argmax(dim=1).tolist()
    (table,) = consensus_tables(members[1:], np.zeros((1, 9), np.int32), torch.eye(4))
    assert "seen_feature" not in table.column_names


def test_what_cannot_be_combined_is_named(place: Path) -> None:
    out, (first, second, _) = str(place / "runs" / "none"), members(place)
    with pytest.raises(ConfigError, match="1 run is given; give two or more"):
        combine([first], out)
    with pytest.raises(ConfigError, match="seed-0 is given twice"):
        combine([first, second, f"{first}/"], out)
    record_start(claim_folder(settled(place, "begun")), read_manifest(f"{place}/digits"))
    with pytest.raises(ConfigError, match=r"begun holds no readable checkpoint"):
        combine([first, f"{place}/runs/begun"], out)
    make_member(settled(place, "larger", "data.image_size=24"))
    with pytest.raises(
        ConfigError, match=r"larger decodes images to .*24.*, but .*seed-0 to .*16.*; combine runs with"
    ):
        combine([first, f"{place}/runs/larger"], out)
    assert not Path(out).exists()


def test_the_command_says_how_far_the_members_agree(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(place / "runs" / "by-command")
    monkeypatch.setattr("sys.argv", ["digpro", *members(place), "--out", out])
    with pytest.raises(SystemExit) as end:
        main("combine")
    said = capsys.readouterr().out
    assert not end.value.code
    assert "of the runs agree on an image" in said
    assert f"atlas:       {out}/atlas.html" in said
