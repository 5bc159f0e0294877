"""What follows from a configuration and a manifest: computed once, before anything starts, and passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError

Mode = Literal["resident", "streaming", "features"]


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes
    ----------
    num_clusters : int
        K.
    num_groups : int
        G, as many as clusters where method.num_groups is null.
    steps_per_epoch : int
        Whole global batches; the images that are left over differ from epoch to epoch.
    images_per_epoch : int
        Images in these steps.
    reset_every : int or None
        Steps between two resets of the groups; None where the group loss is off.
    mode : "resident", "streaming" or "features"
        How the images reach the workers; "features" are those of a frozen backbone, in place of images.
    mode_reason : str
        Why this mode, as a clause.
    """

    num_clusters: int
    num_groups: int
    steps_per_epoch: int
    images_per_epoch: int
    reset_every: int | None
    mode: Mode
    mode_reason: str

    def resets_groups(self, iteration: int) -> bool:
        """Whether the groups are reset before an iteration, counted from 1 over the whole run; never before the first.

        The reset itself waits until the bank is full enough (`DigPro.bank_centers`).
        """
        return self.reset_every is not None and iteration > 1 and iteration % self.reset_every == 0


def make_plan(config: RunConfig, manifest: Manifest) -> Plan:
    """The plan of a run.

    Raises
    ------
    ConfigError
        When configuration and images do not go together; the message names both.
    """
    method, batch = config.method, config.optim.batch_size
    clusters = _cluster_count(config, manifest)
    groups = method.num_groups or clusters
    steps = manifest.num_images // batch
    if steps == 0:
        raise ConfigError(
            f"optim.batch_size={batch} exceeds the {manifest.num_images} images of {config.data.path}; lower it"
        )
    mode, reason = _choose_mode(config, manifest)
    reset_every = (method.reset_every or groups) if method.group_weight else None
    return Plan(clusters, groups, steps, steps * batch, reset_every, mode, reason)


def _cluster_count(config: RunConfig, manifest: Manifest) -> int:
    """K: as configured, or the number of classes that the manifest names."""
    clusters = config.method.num_clusters or len(manifest.class_names)
    if clusters < 2:
        raise ConfigError(
            f"method.num_clusters is not set and the data set at {config.data.path} names "
            f"{len(manifest.class_names)} classes; set method.num_clusters"
        )
    if clusters > manifest.num_images:
        raise ConfigError(
            f"method.num_clusters={clusters} exceeds the {manifest.num_images} images of {config.data.path}; lower it"
        )
    return clusters


def _choose_mode(config: RunConfig, manifest: Manifest) -> tuple[Mode, str]:
    """The mode, and the reason."""
    if config.model.freeze:
        return "features", "model.freeze=true trains on the cached features of the backbone"
    size = resident_bytes(manifest, config.data.decoding["size"]) / 2**30
    limit = config.data.resident_limit_gb
    if config.data.mode != "auto":
        return config.data.mode, "as data.mode says"
    if size <= limit:
        return "resident", f"the decoded set takes {size:.2f} GiB a worker, within data.resident_limit_gb={limit:g}"
    return "streaming", f"the decoded set takes {size:.2f} GiB a worker, over data.resident_limit_gb={limit:g}"


def has_estep(config: RunConfig, epoch: int) -> bool:
    """Whether an epoch, counted from 1, ends with an E-step; in the warm-up some are left out (`estep.warmup_every`).

    The last one there gives the labels that training begins with, and is always made.
    """
    estep, optim = config.estep, config.optim
    last_in_warmup = optim.warmup_epochs - optim.warmup_epochs % estep.every
    thinned = epoch < last_in_warmup and not estep.warm_start
    every = estep.every * (estep.warmup_every if thinned else 1)
    return epoch % every == 0 or epoch == optim.epochs


def resident_bytes(manifest: Manifest, size: int) -> int:
    """Memory that the decoded set takes in each worker."""
    return manifest.num_images * size * size * 3
