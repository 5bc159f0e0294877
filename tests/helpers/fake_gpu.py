"""A GPU without a GPU: tensors that have shapes and a device, and no data.

Whatever needs a value raises there, as it would make the host wait on a GPU: `.item()`, `nonzero`, boolean indexing.
So does an operation on tensors of two devices. CUDA's own device cannot stand in for it: without a driver, torch's
backward pass refuses it. The device here is one of Python's own ("PrivateUse1"), which a process keeps once it has it;
so tests run such work in a process of its own, by the fixtures `fake_gpu` and `one_of_two_fake_gpus`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import Library
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "fakegpu"
FUSED_SGD = Library("aten", "IMPL", "Meta")  # torch has none without data; the real one changes its arguments in place


def have_device(rank: int, workers: int = 1) -> None:
    """Give this process the device, as one of `workers` whose exchanges send nothing."""
    _setup_privateuseone_for_python_backend(DEVICE)
    getattr(torch, DEVICE).get_amp_supported_dtype = lambda: [torch.bfloat16]  # asked for where autocast is off, too
    FUSED_SGD.impl("_fused_sgd_", lambda *args, **kwargs: None)
    if workers > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=workers)


def without_data() -> FakeTensorMode:
    """The mode in which tensors have no data, on the host either; one that was made outside is refused."""
    return FakeTensorMode()


def to_fake_gpu(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers on the device; call it `without_data`, and build the module before."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = empty_like(tensor)
    return module


def empty_like(tensor: Tensor) -> Tensor:
    """A tensor of the same kind on the device."""
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


class Float64(TorchDispatchMode):
    """Collects the operations that leave float64 arrays on the device; a GPU has few units for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float64 and leaf.dim() and leaf.device.type == DEVICE:
                self.found.add(str(func))
        return out
