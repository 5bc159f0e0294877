"""Workers whose nodes have GPUs by name only: Ray places them by these, and they compute on the CPU.

python -m tests.helpers.fake_gpu_nodes train --preset digits ...    # `digpro` on such a cluster
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.state import list_actors

from pipeline.cli import main
from pipeline.training import fit, run

ROOT = Path(__file__).parent.parent.parent
HOOK = "tests.helpers.fake_gpu_nodes.compute_on_cpu"


def compute_on_cpu(patch: pytest.MonkeyPatch | None = None) -> None:
    """Let this process train on the CPU, and over gloo, whatever its workers reserve."""
    patch = patch or pytest.MonkeyPatch()
    patch.setattr(run, "get_device", lambda: torch.device("cpu"))
    patch.setattr(fit, "TorchTrainer", partial(TorchTrainer, torch_config=TorchConfig(backend="gloo")))


def connect(patch: pytest.MonkeyPatch | None = None) -> None:
    """Connect to the cluster of RAY_ADDRESS; this process and all that it starts there compute on the CPU."""
    compute_on_cpu(patch)
    importable = {"PYTHONPATH": str(ROOT)}  # the hook runs before Ray sets the module search path
    ray.init(log_to_driver=False, runtime_env={"worker_process_setup_hook": HOOK, "env_vars": importable})


def hosts(*classes: str, address: str | None = None) -> set[str | None]:
    """The nodes that actors of these classes are or were on, in the cluster of the address or of this process."""
    found = (list_actors(address, filters=[("class_name", "=", name)], limit=1000) for name in classes)
    return {actor.node_id for actors in found for actor in actors}


if __name__ == "__main__":
    connect()
    main()
