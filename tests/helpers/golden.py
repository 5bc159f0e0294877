"""The reference's numbers, and the tolerance for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """Arrays of tests/golden/<name>.npz as tensors; non-numeric arrays unchanged."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {k: torch.from_numpy(np.array(v)) if v.dtype.kind in "fiub" else v for k, v in arrays.items()}


def assert_close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Assert that every element is within rtol of the largest expected magnitude (at least 1e-2, for zeros)."""
    actual, expected = (torch.as_tensor(x).detach() for x in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(float(expected.abs().max()), 1e-2)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=rtol * scale)
