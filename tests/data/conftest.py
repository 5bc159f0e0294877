"""Fixtures of the tests of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipeline import lease
from tests.helpers.images import encoded, put
from tests.helpers.sources import CLASSES


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let leases begin at once: no two commands start together here, and there are hundreds of ingests."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep ingest in this process even when another test has left Ray running in it."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An image folder of 12 PNGs in two classes."""
    for i in range(12):
        put(tmp_path / "tree" / CLASSES[i % 2] / f"{i:02d}.png", encoded(i))
    return tmp_path / "tree"
