"""What a cluster has room for: the CPUs and GPUs of each worker, and how many trials of a search at a time.

Ray Tune counts the actor of a trial and does not know the workers that it will start. So the number of trials is
limited here, beforehand: with more, workers would wait for a place that is never given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.train import ScalingConfig

from pipeline.config.models import ResourcesConfig, RunConfig, WorkerRange
from pipeline.errors import ConfigError

TRIAL_CPUS = 0.1  # of the actor that looks after a trial
READING_CPUS = 1.0  # for reading and decoding, of a streaming trial
Nodes = Sequence[dict[str, float]]


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


def takes_gpus(asked: ResourcesConfig, available: float) -> bool:
    """Whether workers get a GPU each: as set, or with `auto` when the fewest workers can have one.

    The same for a run and for the trials of a search. An elastic group then grows as far as there are GPUs.
    """
    return asked.gpus is True or (asked.gpus == "auto" and available >= asked.worker_range.min)


def worker_resources(config: RunConfig, mode: str) -> WorkerResources:
    """CPUs and GPU of each worker on the connected Ray cluster.

    A streaming run leaves a whole CPU for reading and decoding; workers on GPUs leave all but one each. An elastic run
    is checked with its fewest workers, or in streaming mode, where growing could take the last CPU,
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
    on_gpus = takes_gpus(asked, gpus)
    cpus = asked.cpus_per_worker or (1.0 if streaming and on_gpus else _fair_share(total, bounds))
    if cpus * workers + streaming > total:
        also, instead = (" and one for reading", ", or set data.mode=resident") if streaming else ("", "")
        raise ConfigError(
            f"{workers} workers of {cpus:g} CPUs{also} take more than the cluster's {total:g} CPUs; "
            f"lower resources.workers or resources.cpus_per_worker{instead}"
        )
    return WorkerResources(cpus, on_gpus)


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


@dataclass(frozen=True)
class Capacity:
    """`trials` at a time, each worker of which reserves `cpus` and, with `gpus`, one GPU."""

    trials: int
    cpus: float
    gpus: bool


def search_capacity(config: RunConfig, mode: str, nodes: Nodes, trials: int, wanted: int | None = None) -> Capacity:
    """As many of a search's trials as fit on a cluster at a time, or `wanted` ones.

    A trial takes its actor, its workers (the most that an elastic one can have here), and in streaming mode a CPU for
    Ray Data. In resident mode all trials share one, because each needs it at its start only. Without
    resources.cpus_per_worker workers share what there is: on CPUs alone at least one each, where that gives more than
    one trial.

    Parameters
    ----------
    config : RunConfig
    mode : str
        "resident" or "streaming".
    nodes : sequence of dict
        Resources of each node, as `ray.nodes()` has them.
    trials : int
        In all.
    wanted : int, optional

    Raises
    ------
    ConfigError
        When not even one trial fits, or not as many as wanted.
    """
    asked = config.resources
    if asked.autoscale:
        return _search_on_demand(asked, wanted)
    devices = sum(int(node.get("GPU", 0)) for node in nodes)
    gpus = takes_gpus(asked, devices)
    workers = _most_workers(asked.worker_range, devices if gpus else None)
    most = min(devices // workers, trials) if gpus else trials
    for count in [wanted] if wanted else range(most, 0, -1):
        least = 0.1 if gpus or wanted or count == 1 else 1.0
        cpus = asked.cpus_per_worker or _share(count, workers, mode, nodes)
        if (asked.cpus_per_worker or cpus >= least) and _fits(Capacity(count, cpus, gpus), workers, mode, nodes):
            return Capacity(count, cpus, gpus)
    raise ConfigError(_no_room(asked, workers, gpus, mode, nodes, wanted or 1))


def _most_workers(bounds: WorkerRange, devices: int | None) -> int:
    """Workers that a trial can come to: the most it may have, or as many as there are GPUs for."""
    return bounds.max if devices is None else max(bounds.min, min(bounds.max, devices))


def _search_on_demand(asked: ResourcesConfig, wanted: int | None) -> Capacity:
    """On a cluster that grows; what it will have cannot be guessed from what it has now."""
    if wanted is None or asked.gpus == "auto":
        raise ConfigError(
            "with resources.autoscale=true the cluster's size cannot be known; give the number of trials at a time "
            "(--concurrent N), and set resources.gpus=true or false"
        )
    return Capacity(wanted, asked.cpus_per_worker or 1.0, asked.gpus)


def _beside(trials: int, mode: str) -> float:
    """CPUs that so many trials take besides their workers'."""
    return trials * TRIAL_CPUS + READING_CPUS * (trials if mode == "streaming" else 1)


def _share(trials: int, workers: int, mode: str, nodes: Nodes) -> float:
    """CPUs of each worker: whole ones where possible, else tenths."""
    share = (sum(node.get("CPU", 0) for node in nodes) - _beside(trials, mode)) / (trials * workers)
    return float(int(share)) if share >= 1 else max(int(share * 10 + 1e-6) / 10, 0.0)


def _fits(chosen: Capacity, workers: int, mode: str, nodes: Nodes) -> bool:
    """Whether the CPUs are there, and on each node in pieces that a worker can use."""
    count = chosen.trials * workers
    slots = [int(node.get("CPU", 0) / chosen.cpus + 1e-6) for node in nodes]
    if chosen.gpus:
        slots = [min(slot, int(node.get("GPU", 0))) for slot, node in zip(slots, nodes, strict=True)]
    total = sum(node.get("CPU", 0) for node in nodes)
    return sum(slots) >= count and _beside(chosen.trials, mode) + count * chosen.cpus <= total + 1e-6


def _no_room(asked: ResourcesConfig, workers: int, gpus: bool, mode: str, nodes: Nodes, trials: int) -> str:
    total, devices = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    each = f"{asked.cpus_per_worker or 0.1:g} CPUs{' and a GPU' if gpus else ''}"
    return (
        f"{trials} trial{'s' if trials > 1 else ''} of {workers} workers with {each} each, and "
        f"{_beside(trials, mode):g} CPUs for the trials and Ray Data, do not fit on a cluster of {total:g} CPUs and "
        f"{devices:g} GPUs; lower resources.workers, resources.cpus_per_worker or --concurrent"
    )
