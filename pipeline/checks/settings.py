"""Whether the numbers of a configuration and of a data set go together."""

from __future__ import annotations

import math

from pipeline.config.models import RunConfig, WorkerRange
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError
from pipeline.plan import Plan, make_plan


def check_settings(config: RunConfig, manifest: Manifest) -> Plan:
    """The plan of a run that can be carried out; ConfigError names the numbers that do not go together."""
    plan = make_plan(config, manifest)
    if plan.reset_every and config.method.bank_size < plan.num_groups:
        raise ConfigError(
            f"method.bank_size={config.method.bank_size} is less than the {plan.num_groups} groups, so that they could "
            f"never be reset; raise it to several times {plan.num_groups}, lower method.num_groups, or set "
            "method.group_weight=0"
        )
    workers, batch = config.resources.worker_range, config.optim.batch_size
    if batch < 2 * workers.max:
        raise ConfigError(
            f"optim.batch_size={batch} leaves less than 2 images to each of {workers.max} workers; raise it"
        )
    if plan.mode == "streaming":
        _check_equal_shares(batch, workers)
    return plan


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
