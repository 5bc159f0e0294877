"""The identity of a run: its name belongs to one configuration on one set of images."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from pipeline.backbone_features.cache import FeatureCache
from pipeline.build import settle_images
from pipeline.config.identity import result_settings
from pipeline.config.loading import parse_saved
from pipeline.config.models import RunConfig
from pipeline.config.removed import lost_settings
from pipeline.data.shards import Manifest, has_manifest, read_manifest
from pipeline.errors import ConfigError, first_line
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.inference.consensus import MEMBERS
from pipeline.inference.predict import TrainingClusters
from pipeline.provenance import git_commit, version_of
from pipeline.storage import Folder

IDENTITY, SUMMARY = "run.json", "summary.json"
CLUSTERS_REMEDY = (
    f"delete the run's {SUMMARY} and run its `digpro train` again, which writes both files from the last checkpoint"
)


def run_folder(config: RunConfig) -> Folder:
    """The folder of a named configuration."""
    assert config.name is not None
    return Folder(config.storage).subfolder(config.name)


def claim_folder(config: RunConfig) -> Folder:
    """The folder of a named configuration, new or of the same run.

    Raises
    ------
    ConfigError
        When a run with other settings, or on other images, already has the name; the message lists what differs.
    """
    folder = run_folder(config).make()
    identity = folder.read(IDENTITY)
    if identity is None and (left := folder.names("checkpoint_")):
        raise ConfigError(
            f"{folder.path} holds {left[0]} but no {IDENTITY}, which records the run that it belongs to; restore "
            f"{IDENTITY}, or give another name (--set name=...)"
        )
    if identity is not None and MEMBERS in identity:
        raise ConfigError(f"{folder.path} is the consensus of other runs; give another name (--set name=...)")
    if identity is not None and _is_started(identity):
        changed = _changed_settings(folder, identity, config) + _changed_source(folder, identity, config)
        if (lost := lost_settings(identity["config"])) and folder.read(SUMMARY) is None:  # a finished run is only shown
            changed += lost
        if changed:
            raise ConfigError(
                f"run {config.name!r} in {config.storage} was started with other settings: {'; '.join(changed)}. "
                "Give another name (--set name=...), or the settings that it was started with"
            )
    folder.update(IDENTITY, config=config.model_dump(mode="json"))
    return folder


def record_start(folder: Folder, manifest: Manifest, preset: str = "") -> None:
    """Record the images, and with what preset and code the run first began: from now on the name is taken.

    Raises
    ------
    ConfigError
        When the run was started on other images, or on the same ones in other shards.
    """
    identity = folder.read(IDENTITY) or {}
    if _is_started(identity) and (changed := _changed_images(_parse(folder, identity)[1], manifest)):
        raise ConfigError(f"run {folder.name!r} cannot be resumed: {changed[0]}. Give another name (--set name=...)")
    began = identity.get("began") or _beginning(preset)
    folder.update(IDENTITY, manifest=manifest.model_dump(mode="json"), began=began)


def read_beginning(folder: Folder) -> dict[str, str]:
    """The preset, time, version and commit with which a run began; empty for runs of earlier versions."""
    return dict((folder.read(IDENTITY) or {}).get("began", {}))


def _beginning(preset: str) -> dict[str, str]:
    commit = git_commit() or "not run from a Git checkout"
    time = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {"preset": preset, "time": time, "version": version_of("digpro-ray"), "commit": commit}


def record_members(folder: Folder, config: RunConfig, manifest: Manifest, members: Sequence[str]) -> None:
    """Record a run that was not trained, but combines others: the name is taken, and never trained."""
    folder.write(IDENTITY, {"config": config.model_dump(mode="json"), MEMBERS: list(members)})
    record_start(folder, manifest, read_beginning(Folder(members[0])).get("preset", ""))


def read_members(folder: Folder) -> list[str]:
    """Folders of the runs that a run combines; none for one that was trained."""
    return list((folder.read(IDENTITY) or {}).get(MEMBERS, []))


def claim_features(folder: Folder, cache: FeatureCache) -> None:
    """Record the features that a run is trained on.

    Raises
    ------
    ConfigError
        When it was started on others: its backbone's weights have changed since.
    """
    before = (folder.read(IDENTITY) or {}).get("features")
    if before not in (None, cache.key.digest):
        raise ConfigError(
            f"run {folder.name!r} was started on other features ({before}, now {cache.key.digest}): the weights of its "
            "backbone have changed. Give another name (--set name=...), or the earlier weights"
        )
    folder.update(IDENTITY, features=cache.key.digest)


def was_started(folder: Folder) -> bool:
    """Whether a run has passed its checks here; one that failed them does not keep the name."""
    return _is_started(folder.read(IDENTITY) or {})


def read_started_run(folder: Folder) -> tuple[RunConfig, Manifest]:
    """Configuration and manifest of a run that was started.

    Raises
    ------
    ConfigError
        When the folder holds no run.
    """
    identity = folder.read(IDENTITY)
    if identity is None or not _is_started(identity):
        raise ConfigError(f"{folder.path} holds no run; give the folder of a run, with its {SUMMARY}")
    config, manifest = _parse(folder, identity)
    return settle_images(config), manifest


def _parse(folder: Folder, identity: dict[str, Any]) -> tuple[RunConfig, Manifest]:
    """Configuration and manifest in the identity of a run that was started; ConfigError when they are damaged."""
    origin = folder.file(IDENTITY)
    try:
        return parse_saved(identity["config"], origin), Manifest.model_validate(identity["manifest"])
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ConfigError(
            f"{origin} is damaged, or of another version ({fault(error)}); restore it from the original run, or train "
            "again under another name"
        ) from None


def read_clusters(folder: Folder) -> TrainingClusters | None:
    """The statistics of a run's clusters; None where the run is not finished.

    Raises
    ------
    ConfigError
        When the file is damaged.
    """
    try:
        values = folder.read(TRAINING_CLUSTERS)
        return None if values is None else TrainingClusters.model_validate(values)
    except (ConfigError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{folder.file(TRAINING_CLUSTERS)} is damaged, or of another version ({fault(error)}); {CLUSTERS_REMEDY}"
        ) from None


def fault(error: Exception) -> str:
    """What is wrong with the values of a file, in one line."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {first_line(error)}"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all'}: {first['msg']}"


def _is_started(identity: dict[str, Any]) -> bool:
    return "manifest" in identity


def _changed_settings(folder: Folder, identity: dict[str, Any], config: RunConfig) -> list[str]:
    """How the settings now differ from those that the run was started with."""
    started = parse_saved(identity["config"], folder.file(IDENTITY))
    before, now = (result_settings(settle_images(settings)) for settings in (started, config))
    return [f"{key} was {before[key]}, is {value}" for key, value in now.items() if before[key] != value]


def _changed_source(folder: Folder, identity: dict[str, Any], config: RunConfig) -> list[str]:
    """How the images differ, or where they come from if they have not been ingested yet."""
    if has_manifest(config.data.path):
        return _changed_images(_parse(folder, identity)[1], read_manifest(config.data.path))
    source, wanted = identity["config"]["data"]["source"], config.data.source
    return [] if source == wanted else [f"data.source was {source}, is {wanted}"]


def _changed_images(before: Manifest, now: Manifest) -> list[str]:
    """How the images differ; digests are compared, so that a data folder may move."""
    if before.source.digest != now.source.digest:
        return [f"the images came from {before.source.source}, but now come from {now.source.source}"]
    if before.digest != now.digest:
        return [
            f"the images have since been ingested into other shards (then {len(before.shards)}, now "
            f"{len(now.shards)}), so that their indices differ; ingest them as before"
        ]
    return []
