"""Connecting to Ray: the cluster that RAY_ADDRESS names, or one of this machine's own; and keeping it quiet."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.provenance import versions
from pipeline.ray_private import loopback_only

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Read by Ray when it is imported or started; a user's own settings win.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray Train looks after its workers every 2 s, and a report waits for it: too slow for epochs of a second.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


def connect() -> None:
    """Connect this process to Ray, once; progress comes over the board, so workers' own output stays in Ray's logs.

    A cluster of this machine's own listens on the loopback interface only: who can reach Ray's ports can run code.

    Raises
    ------
    ConfigError
        When RAY_ADDRESS is that of a dashboard, or no cluster is there.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("http"):
        remedy = "take `digpro submit` to run a command there, or unset RAY_ADDRESS to run it on this machine"
        raise ConfigError(f"RAY_ADDRESS={address} is a dashboard, to which jobs are submitted; {remedy}")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():
        try:
            with contextlib.nullcontext() if address else loopback_only():
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); correct or unset it"
            ) from None


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the driver's node, which lives as long as the run does; any other node may go away."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def cluster_facts() -> dict[str, Any]:
    """What the connected cluster has, and the versions in use; for summaries."""
    import ray

    resources = ray.cluster_resources()
    return {
        "hardware": {
            "machine_cpus": os.cpu_count(),
            "cluster_cpus": resources.get("CPU", 0),
            "cluster_gpus": resources.get("GPU", 0),
            "cluster_nodes": len(ray.nodes()),
        },
        "versions": versions(),
    }
