"""Exact sums: values are rounded to whole multiples of a small step and added as whole numbers.

An exact sum is the same in every order, for every split of the rows over chunks and workers, and under the atomic
additions of a GPU. Members can be added and removed again without error. A CPU keeps the whole numbers as float64,
which it adds fastest; a GPU as int64, since many have hardly any float64 units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = 52  # float64 holds all whole numbers up to 2 ** 53


def step_for(exponent: int, count: int) -> float:
    """The finest step, a power of two, at which `count` values below 2 ** exponent have an exact sum.

    All but the smallest float32 values are exact multiples of it: for 60,000 rows it is 2 ** -36 of the bound.
    """
    return 2.0 ** (exponent + math.ceil(math.log2(max(count, 1))) - BITS)


def to_steps(values: Tensor, step: float) -> Tensor:
    """Values as whole numbers of steps, in the type in which sums on this device are exact."""
    return (values * (1 / step)).round_().to(exact_type(values.device))


def exact_type(device: torch.device) -> torch.dtype:
    """The type that holds whole numbers of steps."""
    return torch.float64 if device.type == "cpu" else torch.int64
