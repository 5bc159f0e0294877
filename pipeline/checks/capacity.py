"""What a cluster has room for: the CPUs and GPUs of each worker, and how many trials of a search at a time.

Runs and searches follow one rule: a worker runs on one node, so room is counted node by node. What does not fit is
refused beforehand, because its workers would wait forever. Ray Tune counts the actor of a trial but does not know about
the workers that it will start, so the number of trials is limited here, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from ray.train import ScalingConfig

from pipeline.config.models import ResourcesConfig, RunConfig, WorkerRange
from pipeline.errors import ConfigError

READING_CPUS = 1.0  # for reading and decoding, of a run or of a streaming trial
LEAST_CPUS = 0.1  # of a worker
Nodes = Sequence[dict[str, float]]
"""Resources of each node, as `ray.nodes()` has them."""


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

    def places(self, nodes: Nodes) -> int:
        """How many workers the nodes hold."""
        return sum(self._on(node) for node in nodes)

    def _on(self, node: dict[str, float]) -> int:
        slots = int(node.get("CPU", 0) / self.cpus + 1e-6)
        return min(slots, int(node.get("GPU", 0))) if self.gpus else slots


def takes_gpus(asked: ResourcesConfig, available: float, least: int | None = None) -> bool:
    """Whether GPUs are used: as set; with `auto` if there are `least`, by default one for each of the fewest workers.

    Runs, the trials of a search, and pools of actors use the same rule. An elastic group then grows as far as there are
    GPUs.

    Raises
    ------
    ConfigError
        With `auto` on a cluster that grows: what it will have cannot be guessed from what it has now.
    """
    if asked.gpus != "auto":
        return asked.gpus
    if asked.autoscale:
        raise ConfigError(
            "with resources.autoscale=true it is unknown whether the cluster will have GPUs; set resources.gpus=true "
            "or false"
        )
    return available >= (least or asked.worker_range.min)


@dataclass(frozen=True)
class Pool:
    """Actors that each hold a model: how many there are at least and at most, and whether each has a GPU."""

    gpus: bool
    least: int
    most: int


def actor_pool(asked: ResourcesConfig, nodes: Nodes, useful: int) -> Pool:
    """As many actors as the nodes have GPUs or CPUs for, and more as nodes join, up to `useful`.

    With `auto` one GPU is enough. A pool on the CPUs of a cluster that does not grow keeps its size: more actors would
    take the CPUs of the processes that feed it.
    """
    gpus = takes_gpus(asked, _devices(nodes), least=1)
    least = max(1, min(_devices(nodes) if gpus else int(_cpus(nodes)), useful))
    return Pool(gpus, least, useful if gpus or asked.autoscale else least)


def worker_resources(config: RunConfig, mode: str, nodes: Nodes) -> WorkerResources:
    """CPUs and GPU of each worker on a cluster of these nodes.

    A streaming run leaves a whole CPU for reading and decoding; with workers on GPUs, each takes one CPU and leaves the
    others. A resident run on CPUs takes all of them, because it reads before it computes. An elastic run is checked
    with its fewest workers; in streaming mode, where growing could take the last CPU, with its most.

    Raises
    ------
    ConfigError
        When the nodes have less than is asked for.
    """
    asked, streaming = config.resources, mode == "streaming"
    bounds, devices = asked.worker_range, _devices(nodes)
    gpus = takes_gpus(asked, devices)
    if asked.autoscale:
        return WorkerResources(asked.cpus_per_worker or 1.0, gpus)
    workers = _most_workers(bounds, devices if gpus else None) if streaming else bounds.min
    fixed = 1.0 if bounds.min < bounds.max or (streaming and gpus) else None  # what an elastic one will find is unknown
    beside = READING_CPUS if streaming or gpus else 0.0
    cpus = asked.cpus_per_worker or fixed or fair_share(workers, beside, gpus, nodes) or LEAST_CPUS
    chosen = WorkerResources(cpus, gpus)
    if not _fit(chosen, workers, READING_CPUS * streaming, nodes):
        remedies = ["lower resources.workers or resources.cpus_per_worker", *(["set data.mode=resident"] * streaming)]
        raise ConfigError(_no_room(_plural(workers, "worker"), chosen, READING_CPUS * streaming, nodes, remedies))
    return chosen


def fair_share(workers: int, beside: float, gpus: bool, nodes: Nodes) -> float:
    """The most CPUs that each of so many workers can have: whole ones, else tenths; 0 if not even a tenth fits.

    `beside` CPUs are left free. Workers on GPUs share only the CPUs of nodes with GPUs.
    """
    usable = [node for node in nodes if node.get("GPU", 0) >= 1] if gpus else nodes
    whole = range(int(max((node.get("CPU", 0) for node in usable), default=0)), 0, -1)
    shares = chain(map(float, whole), (tenths / 10 for tenths in range(9, 0, -1)))
    return next((share for share in shares if _fit(WorkerResources(share, gpus), workers, beside, usable)), 0.0)


def _fit(each: WorkerResources, workers: int, beside: float, nodes: Nodes) -> bool:
    """Whether every worker has a node, and `beside` CPUs are left on all of them together."""
    return each.places(nodes) >= workers and workers * each.cpus + beside <= _cpus(nodes) + 1e-6


@dataclass(frozen=True)
class Capacity:
    """`trials` at a time; each of their workers reserves `cpus` and, with `gpus`, one GPU."""

    trials: int
    cpus: float
    gpus: bool


def search_capacity(config: RunConfig, mode: str, nodes: Nodes, trials: int, wanted: int | None = None) -> Capacity:
    """As many of a search's trials as fit on a cluster at a time, or `wanted` ones.

    A trial takes its workers (an elastic one the most that it can have here) and, in streaming mode, a CPU for
    Ray Data. In resident mode all trials share this CPU, because each needs it only at its start. Without
    resources.cpus_per_worker the workers share the cluster's CPUs; without GPUs each gets at least one, unless only one
    trial fits.

    Parameters
    ----------
    config : RunConfig
    mode : str
        "resident" or "streaming".
    nodes : sequence of dict
        Resources of each node.
    trials : int
        In all.
    wanted : int, optional

    Raises
    ------
    ConfigError
        When not even one trial fits, or not as many as wanted.
    """
    asked, devices = config.resources, _devices(nodes)
    gpus = takes_gpus(asked, devices)
    if asked.autoscale:
        return _search_on_demand(asked, gpus, wanted)
    workers = _most_workers(asked.worker_range, devices if gpus else None)
    most = min(devices // workers, trials) if gpus else trials
    for count in [wanted] if wanted else range(most, 0, -1):
        beside = _reading(count, mode)
        cpus = asked.cpus_per_worker or fair_share(count * workers, beside, gpus, nodes) or LEAST_CPUS
        shared = cpus >= 1 or asked.cpus_per_worker or gpus or wanted or count == 1
        if shared and _fit(WorkerResources(cpus, gpus), count * workers, beside, nodes):
            return Capacity(count, cpus, gpus)
    count = wanted or 1
    what = f"{_plural(count, 'trial')} of {_plural(workers, 'worker')}"
    each = WorkerResources(asked.cpus_per_worker or LEAST_CPUS, gpus)
    remedies = ["lower resources.workers, resources.cpus_per_worker or --concurrent"]
    raise ConfigError(_no_room(what, each, _reading(count, mode), nodes, remedies))


def _most_workers(bounds: WorkerRange, devices: int | None) -> int:
    """Workers that a group can reach: the most it may have, or as many as there are GPUs for."""
    return bounds.max if devices is None else max(bounds.min, min(bounds.max, devices))


def _search_on_demand(asked: ResourcesConfig, gpus: bool, wanted: int | None) -> Capacity:
    """On a cluster that grows; what it will have cannot be guessed from what it has now."""
    if wanted is None:
        raise ConfigError(
            "with resources.autoscale=true the cluster's size is unknown; give the number of trials at a time "
            "(--concurrent N)"
        )
    return Capacity(wanted, asked.cpus_per_worker or 1.0, gpus)


def _reading(trials: int, mode: str) -> float:
    """CPUs that so many trials take besides their workers'."""
    return READING_CPUS * (trials if mode == "streaming" else 1)


def _cpus(nodes: Nodes) -> float:
    return sum(node.get("CPU", 0) for node in nodes)


def _devices(nodes: Nodes) -> int:
    """Whole GPUs."""
    return sum(int(node.get("GPU", 0)) for node in nodes)


def _no_room(what: str, each: WorkerResources, beside: float, nodes: Nodes, remedies: Sequence[str]) -> str:
    """Why so many workers do not fit, with the nodes as they are."""
    also = f", plus {beside:g} for reading images," if beside else ""
    gpu, cpus = (" and a GPU", ["set resources.gpus=false"]) if each.gpus else ("", [])
    return (
        f"{what} with {each.cpus:g} CPUs{gpu} each{also} do not fit on the cluster's nodes ({describe_nodes(nodes)}); "
        f"{', or '.join([*remedies, *cpus])}"
    )


def describe_nodes(nodes: Nodes) -> str:
    """The nodes by what they have: "1 of 4 CPUs, 2 of 4 CPUs and 1 GPU"."""
    kinds = Counter((node.get("CPU", 0), int(node.get("GPU", 0))) for node in nodes)
    words = [
        f"{count} of {cpus:g} CPUs" + (f" and {_plural(gpus, 'GPU')}" if gpus else "")
        for (cpus, gpus), count in sorted(kinds.items())
    ]
    return ", ".join(words) or "none"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"
