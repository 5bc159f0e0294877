"""What a worker gets: one complete, picklable value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.alarms import Facts
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.plan import Plan
from pipeline.storage import Folder
from pipeline.tracking import RunRef


@dataclass(frozen=True)
class Job:
    """A prepared training run.

    Attributes
    ----------
    config : RunConfig
        With a name, and with paths that mean the same in every process.
    manifest : Manifest
    plan : Plan
    tracking : RunRef
        MLflow's run.
    board : actor handle or None
        A `Board`, where rank 0 posts its news.
    feature_cache : str or None
        Folder with the cached backbone features, on which the heads are trained.
    weights_from : str or None
        Checkpoint of another run, by absolute path or URI; this run starts from its weights.
    reading_cpus : float or None
        CPUs for reading and decoding, over all workers; None: those that the workers leave free.
    """

    config: RunConfig
    manifest: Manifest
    plan: Plan
    tracking: RunRef
    board: Any = None
    feature_cache: str | None = None
    weights_from: str | None = None
    reading_cpus: float | None = None

    @property
    def folder(self) -> Folder:
        """The run's folder."""
        assert self.config.name is not None
        return Folder(self.config.storage).subfolder(self.config.name)

    @property
    def alarm_facts(self) -> Facts:
        """What the metrics of its epochs are judged by."""
        levels = self.config.alarms.levels
        return Facts(
            num_clusters=self.plan.num_clusters,
            num_images=self.manifest.num_images,
            warmup_epochs=self.config.optim.warmup_epochs,
            ignored=[kind for kind, level in levels.items() if level == "ignore"],
        )
