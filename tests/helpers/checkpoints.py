"""Ray Train's record of a run's checkpoints, and a run with one, made without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from pipeline.config.models import RunConfig
from pipeline.training.checkpoint import RAY_RECORD, write_checkpoint


def write_record(run: Path, names: Sequence[str]) -> None:
    """Write the record of the checkpoints with these names, the oldest first, into a run's folder."""
    results = [{"version": 0, "metrics": {"epoch": 1}, "checkpoint_dir_name": name} for name in names]
    record = {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "current_report_index": len(names),
    }
    lists = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
    more = ("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names")
    record |= {name: [] for name in (*lists, *more)}
    (run / RAY_RECORD).write_text(json.dumps(record))


def register_checkpoint(run: Path, values: dict[str, Any], config: RunConfig) -> None:
    """Give a run's folder its only checkpoint."""
    folder = run / "checkpoint_2026-01-01_00-00-00.000000"
    folder.mkdir(parents=True)
    write_checkpoint(folder, values, config)
    write_record(run, [folder.name])
