"""Connecting to Ray: the cluster that RAY_ADDRESS names, or one of this machine's own; and keeping it quiet."""

from __future__ import annotations

import logging
import os

# Read by Ray when it is imported or started; a user's own settings win.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray Train looks after its workers every 2 s, and a report waits for it: too slow for epochs of a second.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


def connect() -> None:
    """Connect this process to Ray, once; progress comes over the board, so workers' own output stays in Ray's logs."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
