"""A run's name belongs to one run: the same settings on the same images."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.identity import fingerprint
from pipeline.config.loading import load_config, with_settings
from pipeline.config.models import RunConfig
from pipeline.data.shards import Shard
from pipeline.errors import ConfigError, DataError
from pipeline.runs.identity import IDENTITY, SUMMARY, claim_folder, record_start, was_started
from pipeline.storage import Folder
from tests.helpers.manifests import manifest


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    places = [f"storage={tmp_path / 'runs'}", f"data.path={tmp_path / 'data'}", "name=mine"]
    return load_config("digits", [*places, *overrides])


def images(folder: Path, digest: str = "d") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest(digest=digest).write(str(folder))


def start(chosen: RunConfig) -> Folder:
    """Claim the folder, and go as far as the images."""
    folder = claim_folder(chosen)
    record_start(folder, manifest())
    return folder


def test_the_same_run_comes_back_to_its_folder(tmp_path: Path) -> None:
    images(tmp_path / "data")
    first, again = start(config(tmp_path)), claim_folder(config(tmp_path))
    assert first.path == again.path == str(tmp_path / "runs" / "mine")
    assert was_started(again)


def test_a_name_in_use_says_what_differs_and_nothing_else(tmp_path: Path) -> None:
    images(tmp_path / "data")
    folder = start(config(tmp_path))
    before = folder.read(IDENTITY)
    with pytest.raises(ConfigError) as caught:
        claim_folder(config(tmp_path, "optim.lr=0.3", "optim.batch_size=64", "resources.workers=7"))
    said = str(caught.value)
    assert "'mine'" in said
    assert "optim.lr was 0.1, is 0.3" in said
    assert "optim.batch_size was 128, is 64" in said
    assert "--set name=" in said
    assert "workers" not in said
    assert folder.read(IDENTITY) == before


@pytest.mark.parametrize(
    "override", ["resources.workers=7", "tracking.experiment=x", "checkpoint.keep=5", "data.resident_limit_gb=1"]
)
def test_circumstances_may_change_and_are_remembered(tmp_path: Path, override: str) -> None:
    images(tmp_path / "data")
    folder = start(config(tmp_path))
    changed = config(tmp_path, override)
    claim_folder(changed)
    assert RunConfig.model_validate((folder.read(IDENTITY) or {})["config"]) == changed


@pytest.mark.parametrize(("section", "key", "value"), [("estep", "warm_start", True), ("estep", "settled_restarts", 2)])
def test_an_unfinished_run_with_a_removed_setting_is_refused(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    """It would silently continue in another way; a finished one is only shown."""
    images(tmp_path / "data")
    folder = start(config(tmp_path))
    saved = (folder.read(IDENTITY) or {})["config"]
    folder.update(IDENTITY, config=saved | {section: saved[section] | {key: value}})
    with pytest.raises(ConfigError, match=rf"{section}\.{key} was {value}, and is no longer a setting: each E-step"):
        claim_folder(config(tmp_path))
    folder.write(SUMMARY, {})
    claim_folder(config(tmp_path))


def test_a_data_folder_may_move(tmp_path: Path) -> None:
    images(tmp_path / "data")
    start(config(tmp_path))
    (tmp_path / "data").rename(tmp_path / "moved")
    folder = claim_folder(config(tmp_path, f"data.path={tmp_path / 'moved'}"))
    assert (folder.read(IDENTITY) or {})["config"]["data"]["path"] == str(tmp_path / "moved")


def test_other_images_in_the_same_folder_are_another_run(tmp_path: Path) -> None:
    images(tmp_path / "data")
    start(config(tmp_path))
    images(tmp_path / "data", digest="other")
    with pytest.raises(ConfigError, match=r"the images came from imagefolder:d, but now come from imagefolder:other"):
        claim_folder(config(tmp_path))


def test_the_same_images_in_other_shards_are_another_run(tmp_path: Path) -> None:
    """Their indices differ, so pseudo-labels would belong to other images."""
    images(tmp_path / "data")
    folder = start(config(tmp_path))
    shard = Shard(file="shard-00000.parquet", rows=100, bytes=2, first_index=0)
    again = manifest().model_copy(update={"shards": [shard]})
    again.write(str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"ingested into other shards .then 1, now 1., so that their indices differ"):
        claim_folder(config(tmp_path))
    with pytest.raises(ConfigError, match=r"'mine' cannot be resumed: .* ingested into other shards"):
        record_start(folder, again)


def test_another_source_for_images_that_are_gone_is_another_run(tmp_path: Path) -> None:
    start(config(tmp_path))
    claim_folder(config(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.source was digits, is imagefolder:x"):
        claim_folder(config(tmp_path, "data.source=imagefolder:x"))


def test_a_run_that_failed_its_checks_does_not_keep_the_name(tmp_path: Path) -> None:
    claim_folder(config(tmp_path, "method.num_clusters=5000"))
    folder = claim_folder(config(tmp_path, "method.num_clusters=10"))
    assert (folder.read(IDENTITY) or {})["config"]["method"]["num_clusters"] == 10


def test_damage_is_named(tmp_path: Path) -> None:
    images(tmp_path / "data")
    folder = start(config(tmp_path))
    Path(folder.root, IDENTITY).write_text('{"config": ')
    with pytest.raises(ConfigError, match=r"mine/run\.json is damaged .*another name"):
        claim_folder(config(tmp_path))
    start_again = config(tmp_path, "name=second")
    start(start_again)
    Path(tmp_path, "data", "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        claim_folder(start_again)


def test_checkpoints_without_identity_belong_to_nobody(tmp_path: Path) -> None:
    images(tmp_path / "data")
    folder = start(config(tmp_path))
    Path(folder.root, "checkpoint_2026-01-01").mkdir()
    claim_folder(config(tmp_path))
    Path(folder.root, IDENTITY).unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoint_2026-01-01 but no run\.json, .*another name"):
        claim_folder(config(tmp_path))


def test_a_password_is_not_kept_with_the_run(tmp_path: Path) -> None:
    images(tmp_path / "data")
    chosen = config(tmp_path, "tracking.uri=http://me:secret@mlflow:5000")
    folder = start(chosen)
    assert "secret" not in Path(folder.root, IDENTITY).read_text()
    assert with_settings(chosen, {"optim.lr": 0.2}, "a trial").tracking.uri == "http://me:secret@mlflow:5000"


@pytest.mark.parametrize("options", ["", "?endpoint_override=http://minio:9000&region=x"])
def test_a_moved_data_folder_has_the_same_name(tmp_path: Path, options: str) -> None:
    remote = config(tmp_path, f"data.path=s3://bucket/deep/data{options}")
    assert fingerprint(remote) == fingerprint(config(tmp_path))
