"""Whether the numbers of a configuration fit those of a data set."""

from __future__ import annotations

from pipeline.config.models import RunConfig
from pipeline.data.order import Order
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError
from pipeline.plan import Plan, make_plan


def check_settings(config: RunConfig, manifest: Manifest) -> Plan:
    """The plan of a run; ConfigError names numbers that do not fit together."""
    plan = make_plan(config, manifest)
    if plan.reset_every and config.method.bank_size < plan.num_groups:
        raise ConfigError(
            f"method.bank_size={config.method.bank_size} is less than the {plan.num_groups} groups, so they could "
            f"never be reset; raise it to several times {plan.num_groups}, lower method.num_groups, or set "
            "method.group_weight=0"
        )
    workers, batch = config.resources.worker_range.max, config.optim.batch_size
    if batch < 2 * workers:
        raise ConfigError(f"optim.batch_size={batch} gives each of {workers} workers fewer than 2 images; raise it")
    _check_lanes(plan.order, workers)
    return plan


def _check_lanes(order: Order, workers: int) -> None:
    """ConfigError if the order has fewer lanes than there may be workers."""
    if order.lanes < workers:
        rows = max(order.row_groups)
        raise ConfigError(
            f"resources.workers={workers} is more than the {order.lanes} lanes of a shuffle window of {order.window} "
            f"images with row groups of up to {rows}, and each worker needs a lane; set "
            f"data.shuffle_window={2 * rows * workers} or more, or lower resources.workers"
        )
