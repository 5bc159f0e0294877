"""Deep clustering of images without labels (DigPro), from one laptop core to a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.estimator import DigPro

__all__ = ["DigPro"]


def __getattr__(name: str) -> Any:
    """Load the estimator on first access: its imports take seconds."""
    if name != "DigPro":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.estimator import DigPro

    return DigPro
