"""What `optim.precision=auto` means for a run: settled when it begins, once for all workers, and kept in its folder.

Devices may differ between workers and between starts of a run.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.backbone_features.build_cache import settled
from pipeline.collectives import all_stack, from_rank_zero, rank
from pipeline.method.precision import multiplies_bfloat16
from pipeline.storage import Folder
from pipeline.training.job import Job

PRECISION = "precision.json"  # in the folder of a run, or of a search
CHOICES = ("float32", "bfloat16")


def begun_precision(folder: Folder) -> str | None:
    """The precision that a run has begun with; None if none is settled yet."""
    return (folder.read(PRECISION) or {}).get("precision")


def keep_precision(folder: Folder, precision: str) -> None:
    """Note the precision that a run begins with."""
    folder.write(PRECISION, {"precision": precision})


def settle_job(job: Job, device: torch.device) -> Job:
    """The job with the precision it has begun with; on its first start bfloat16 if every worker's device supports it.

    All workers call it.
    """
    if job.config.optim.precision != "auto":
        return job
    begun = begun_precision(job.folder) if rank() == 0 else None
    own = torch.tensor([CHOICES.index(begun) if begun else -1, multiplies_bfloat16(device)], device=device)
    known, fast = int(from_rank_zero(own[0].clone())), int(all_stack(own[1]).min())
    precision = CHOICES[fast if known < 0 else known]
    if rank() == 0 and begun is None:
        keep_precision(job.folder, precision)
    return replace(job, config=settled(job.config, precision))
