"""What can be known to fail before any training starts."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

import ray
from ray.train import ScalingConfig

from pipeline.build import cluster_count, steps_per_epoch
from pipeline.config import ConfigError, ResourcesConfig, RunConfig, WorkerRange
from pipeline.data.shards import Manifest, filesystem
from pipeline.data.stream import choose_mode


@dataclass(frozen=True)
class WorkerResources:
    """What each worker reserves."""

    cpus: float
    gpus: bool

    def scaling(self, asked: ResourcesConfig) -> ScalingConfig:
        """As Ray Train wants it."""
        workers = asked.worker_range
        return ScalingConfig(
            num_workers=workers.max if workers.min == workers.max else (workers.min, workers.max),
            use_gpu=self.gpus,
            resources_per_worker={"CPU": self.cpus} | ({"GPU": 1} if self.gpus else {}),
            elastic_resize_monitor_interval_s=asked.resize_seconds,
        )


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
    clusters, method = cluster_count(config, manifest), config.method
    steps_per_epoch(config, manifest)
    groups = method.num_groups or clusters
    if method.group_weight and method.bank_size < groups:
        raise ConfigError(
            f"method.bank_size={method.bank_size} is less than the {groups} groups, so that they could never be reset; "
            f"raise it to several times {groups}, lower method.num_groups, or set method.group_weight=0"
        )
    workers, batch = config.resources.worker_range, config.optim.batch_size
    if batch < 2 * workers.max:
        raise ConfigError(
            f"optim.batch_size={batch} leaves less than 2 images to each of {workers.max} workers; raise it"
        )
    mode, _ = choose_mode(config, manifest)
    if mode == "streaming":
        _check_equal_shares(batch, workers)


def _check_equal_shares(batch: int, workers: WorkerRange) -> None:
    """Streaming gives every worker as many images; ConfigError when some number of workers cannot share a batch."""
    counts = range(workers.min, workers.max + 1)
    if odd := [count for count in counts if batch % count]:
        multiple = math.lcm(*counts)
        near = max(batch // multiple, 1) * multiple
        raise ConfigError(
            f"optim.batch_size={batch} does not divide by resources.workers={odd[0]}, as streaming mode needs it to; "
            f"take {near if near < 4 * batch else 'a fixed number of workers'}, or set data.mode=resident"
        )


def worker_resources(config: RunConfig, mode: str) -> WorkerResources:
    """CPUs and GPU of each worker on the connected Ray cluster.

    A streaming run needs a whole CPU beside the workers for Ray Data: without one it would wait forever in silence.
    An elastic run is checked with its fewest workers, or in streaming mode, where growing could take the last CPU,
    with its most.

    Raises
    ------
    ConfigError
        When the cluster has less than is asked for.
    """
    asked, cluster = config.resources, ray.cluster_resources()
    if asked.autoscale:
        return _on_demand(asked)
    bounds, streaming = asked.worker_range, mode == "streaming"
    workers = bounds.max if streaming else bounds.min
    total, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if asked.gpus is True and gpus < bounds.min:
        raise ConfigError(
            f"resources.gpus=true asks a GPU for each of {bounds.min} workers and the cluster has {gpus:g}; "
            "lower resources.workers, or set resources.gpus=auto"
        )
    cpus = asked.cpus_per_worker or _fair_share(total, bounds)
    if cpus * workers + streaming > total:
        also, instead = (" and one for Ray Data", ", or set data.mode=resident") if streaming else ("", "")
        raise ConfigError(
            f"{workers} workers of {cpus:g} CPUs{also} take more than the cluster's {total:g} CPUs; "
            f"lower resources.workers or resources.cpus_per_worker{instead}"
        )
    return WorkerResources(cpus, asked.gpus is True or (asked.gpus == "auto" and gpus >= bounds.min))


def _on_demand(asked: ResourcesConfig) -> WorkerResources:
    """What a cluster that grows is asked for; it cannot be guessed from what it has now."""
    if asked.gpus == "auto":
        raise ConfigError(
            "resources.autoscale=true cannot tell whether GPUs will come; set resources.gpus=true or false"
        )
    return WorkerResources(asked.cpus_per_worker or 1.0, asked.gpus)


def _fair_share(total: float, workers: WorkerRange) -> float:
    """CPUs of a worker when one is left to Ray Data: whole ones where possible, else a tenth or more.

    An elastic worker takes one CPU: what the cluster has now says nothing of what it will have.
    """
    if workers.min < workers.max:
        return 1.0
    share = max((total - 1) / workers.max, 0.1)
    return float(int(share)) if share >= 1 else int(share * 10) / 10
