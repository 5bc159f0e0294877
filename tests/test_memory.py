"""A lack of memory is told in one line, whoever says it."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import OutOfMemoryError

from pipeline.memory import memory_shortage

RAYS_WORDS = """6 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 10.0.0.7, ID: 9c1a4d31) was 22.60GB used / 23.54GB limit (0.960216)
OOM kill reason: Memory usage 24083009536B exceeded threshold of 24012687360B (95.0% of 25276514304B limit)
Ray killed 6 worker(s) based on the killing policy
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
29955\t3.05\tray::RayTrainWorker
22107\t2.99\tray::RayTrainWorker.run
9108\t0.73\t/usr/bin/python -u -c import sys
9111\t0.64\t/usr/bin/python -u -c import sys
Refer to the documentation on how to address the out of memory issue: ...
"""
OF_A_NODE = (
    "node 10.0.0.7 ran low on memory (22.60GB of 23.54GB in use), and Ray ended processes of this run there; the "
    "largest processes are ray::RayTrainWorker 3.0 GB, ray::RayTrainWorker.run 3.0 GB, /usr/bin/python 0.7 GB"
)


def test_a_nodes_shortage_is_one_line_and_names_who_holds_most() -> None:
    assert memory_shortage(OutOfMemoryError(RAYS_WORDS)) == OF_A_NODE
    without_users = RAYS_WORDS.split("Top 10")[0]
    assert memory_shortage(OutOfMemoryError(without_users)) == OF_A_NODE.split(";")[0]


def test_a_devices_shortage_is_torchs_own_line() -> None:
    line = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
    assert memory_shortage(torch.OutOfMemoryError(f"{line}\nmore")) == line


def test_the_processors_memory_runs_out_as_well() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert "can't allocate memory: you tried to allocate" in str(memory_shortage(raised.value))


def test_python_and_numpy_run_out_as_well() -> None:
    assert memory_shortage(MemoryError()) == "no memory left: MemoryError"
    assert memory_shortage(MemoryError("Unable to allocate 8 GiB")) == "no memory left: Unable to allocate 8 GiB"


@pytest.mark.parametrize("error", [ValueError("bad value"), KeyError("memory")])
def test_other_errors_are_none(error: Exception) -> None:
    assert memory_shortage(error) is None
