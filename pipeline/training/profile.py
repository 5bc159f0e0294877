"""What `profile.steps` records: a trace of some training steps, and the operators that took the time."""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.collectives import rank
from pipeline.storage import Folder

PROFILE = "profile"  # folder within the run's
SKIPPED = 5  # first steps, which allocate
ROWS = 40  # of the table of operators


class StepProfiler:
    """Records `steps` training steps of this worker, after the first few, into the run's folder."""

    def __init__(self, folder: Folder, steps: int) -> None:
        self.folder = folder.subfolder(PROFILE).make()
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profile = profile(
            activities=[ProfilerActivity.CPU, *gpu],
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self.profile.start()

    def step(self) -> None:
        """A training step is done."""
        self.profile.step()

    def stop(self) -> None:
        """Write what was recorded if the run ended before all steps were recorded."""
        self.profile.stop()

    def _write(self, recorded: profile) -> None:
        with TemporaryDirectory() as place:
            trace = Path(place) / "trace.json"
            recorded.export_chrome_trace(str(trace))
            self.folder.write_bytes(f"trace-{rank()}.json.gz", gzip.compress(trace.read_bytes()))
        by_time = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=by_time, row_limit=ROWS)
        self.folder.write_bytes(f"operators-{rank()}.txt", table.encode())
