"""The reference's numbers, and how near ours have to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """Arrays of tests/golden/<name>.npz as tensors; texts and scalars as they are."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {k: torch.from_numpy(np.array(v)) if v.dtype.kind in "fiub" else v for k, v in arrays.items()}


def assert_close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Every element within rtol of the largest expected magnitude, or of 1e-2 where all are zero but for rounding."""
    actual, expected = (torch.as_tensor(x).detach() for x in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(float(expected.abs().max()), 1e-2)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=rtol * scale)
