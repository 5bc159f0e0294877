"""The numbers that follow from a configuration and a manifest, computed once before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.models import RunConfig
from pipeline.data.order import Order
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError

Mode = Literal["resident", "streaming", "features"]
WINDOW_IMAGES, WINDOW_BYTES = 65_536, 2 << 30  # limits of what is shuffled together over all workers; both apply


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes
    ----------
    num_clusters : int
        K.
    num_groups : int
        G; equal to K where method.num_groups is null.
    order : Order
        Order of the images in every epoch.
    reset_every : int or None
        Steps between two resets of the groups; None where the group loss is off.
    mode : "resident", "streaming" or "features"
        How the images reach the workers; "features": cached backbone features instead of images.
    mode_reason : str
        Why this mode, as a clause.
    """

    num_clusters: int
    num_groups: int
    order: Order
    reset_every: int | None
    mode: Mode
    mode_reason: str

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches; the leftover images differ from epoch to epoch."""
        return self.order.steps

    @property
    def images_per_epoch(self) -> int:
        """Images in these steps."""
        return self.order.steps * self.order.batch_size

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
        When the configuration does not fit the images; the message names both.
    """
    method, batch = config.method, config.optim.batch_size
    clusters = _cluster_count(config, manifest)
    groups = method.num_groups or clusters
    if batch > manifest.num_images:
        raise ConfigError(
            f"optim.batch_size={batch} exceeds the {manifest.num_images} images of {config.data.path}; lower it"
        )
    mode, reason = _choose_mode(config, manifest)
    reset_every = (method.reset_every or groups) if method.group_weight else None
    return Plan(clusters, groups, make_order(config, manifest), reset_every, mode, reason)


def make_order(config: RunConfig, manifest: Manifest) -> Order:
    """The order of the images; the same for resident and streaming, so that this choice does not change the result.

    Every worker can read all cached backbone features, so they are all shuffled together.
    """
    window = manifest.num_images if config.model.freeze else shuffle_window(config)
    row_groups = tuple(rows for shard in manifest.shards for rows in shard.groups)
    return Order(manifest.num_images, config.optim.batch_size, config.seed, window, row_groups)


def shuffle_window(config: RunConfig) -> int:
    """Images that are shuffled together: as configured, or a number that fits a machine's memory."""
    most = WINDOW_BYTES // image_bytes(config)
    return config.data.shuffle_window or min(WINDOW_IMAGES, most)


def image_bytes(config: RunConfig) -> int:
    """Bytes of a decoded image."""
    size: int = config.data.decoding["size"]
    return size * size * 3


def _cluster_count(config: RunConfig, manifest: Manifest) -> int:
    """K: as configured, or the number of classes that the manifest names."""
    clusters = config.method.num_clusters or len(manifest.class_names)
    if clusters < 2:
        raise ConfigError(
            f"method.num_clusters is not set, and the data set in {config.data.path} names "
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
    workers = config.resources.worker_range.min
    size = manifest.num_images * image_bytes(config) / workers / 2**30
    limit = config.data.resident_limit_gb
    if config.data.mode != "auto":
        return config.data.mode, "as set by data.mode"
    if size <= limit:
        return "resident", f"the decoded images take {size:.2f} GiB per worker, within data.resident_limit_gb={limit:g}"
    return "streaming", f"the decoded images take {size:.2f} GiB per worker, over data.resident_limit_gb={limit:g}"


def is_balanced(config: RunConfig, epoch: int) -> bool:
    """Whether the images of an epoch, counted from 0, are drawn by their pseudo-labels (`optim.balance`)."""
    return config.optim.balance > 0 and epoch >= config.optim.warmup_epochs  # early clusters are no guide to classes


def has_estep(config: RunConfig, epoch: int) -> bool:
    """Whether an epoch, counted from 1, ends with an E-step; in the warm-up some are left out (`estep.warmup_every`).

    The last one of the warm-up gives the labels that training begins with, and always runs.
    """
    estep, optim = config.estep, config.optim
    last_in_warmup = optim.warmup_epochs - optim.warmup_epochs % estep.every
    every = estep.every * (estep.warmup_every if epoch < last_in_warmup else 1)
    return epoch % every == 0 or epoch == optim.epochs
