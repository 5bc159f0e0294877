"""What can be known to fail before any training starts."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import ray
from ray.train import ScalingConfig

from pipeline.build import cluster_count, steps_per_epoch
from pipeline.config import ConfigError, RunConfig
from pipeline.data.shards import Manifest, filesystem
from pipeline.data.stream import choose_mode


@dataclass(frozen=True)
class WorkerResources:
    """What each worker reserves."""

    cpus: float
    gpus: bool

    def scaling(self, workers: int) -> ScalingConfig:
        """As Ray Train wants it."""
        each = {"CPU": self.cpus} | ({"GPU": 1} if self.gpus else {})
        return ScalingConfig(num_workers=workers, use_gpu=self.gpus, resources_per_worker=each)


def check_storage(path: str) -> None:
    """Write and remove a probe below `path`; ConfigError with the reason when that fails."""
    try:
        files, root = filesystem(path)
        files.create_dir(root, recursive=True)
        probe = f"{root}/.probe-{uuid.uuid4().hex}"
        with files.open_output_stream(probe) as stream:
            stream.write(b"digpro")
        files.delete_file(probe)
    except OSError as error:
        raise ConfigError(
            f"storage={path!r} cannot be written ({error}); set storage to a folder or URI that can"
        ) from None


def check_run(config: RunConfig, manifest: Manifest) -> None:
    """Numbers of configuration and data set that cannot go together; ConfigError names them."""
    cluster_count(config, manifest)
    steps_per_epoch(config, manifest)
    workers, batch = config.resources.workers, config.optim.batch_size
    if batch < 2 * workers:
        raise ConfigError(f"optim.batch_size={batch} leaves less than 2 images to each of {workers} workers; raise it")
    mode, _ = choose_mode(config, manifest)
    if mode == "streaming" and batch % workers:
        raise ConfigError(
            f"optim.batch_size={batch} does not divide by resources.workers={workers}, as {mode} mode needs it to; "
            f"take {batch - batch % workers}, or set data.mode=resident"
        )


def worker_resources(config: RunConfig, mode: str) -> WorkerResources:
    """CPUs and GPU of each worker on the connected Ray cluster.

    A streaming run needs a whole CPU beside the workers for Ray Data: without one it would wait forever in silence.

    Raises
    ------
    ConfigError
        When the cluster has less than is asked for.
    """
    asked, cluster = config.resources, ray.cluster_resources()
    total, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if asked.gpus is True and gpus < asked.workers:
        raise ConfigError(
            f"resources.gpus=true asks a GPU for each of {asked.workers} workers and the cluster has {gpus:g}; "
            "lower resources.workers, or set resources.gpus=auto"
        )
    cpus = asked.cpus_per_worker or _fair_share(total, asked.workers)
    for_data = 1 if mode == "streaming" else 0
    if cpus * asked.workers + for_data > total:
        also, instead = (" and one for Ray Data", ", or set data.mode=resident") if for_data else ("", "")
        raise ConfigError(
            f"{asked.workers} workers of {cpus:g} CPUs{also} take more than the cluster's {total:g} CPUs; "
            f"lower resources.workers or resources.cpus_per_worker{instead}"
        )
    return WorkerResources(cpus, asked.gpus is True or (asked.gpus == "auto" and gpus >= asked.workers))


def _fair_share(total: float, workers: int) -> float:
    """CPUs of a worker when one is left to Ray Data: whole ones where possible, else a tenth or more."""
    share = max((total - 1) / workers, 0.1)
    return float(int(share)) if share >= 1 else int(share * 10) / 10
