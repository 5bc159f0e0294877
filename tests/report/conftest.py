"""Fixtures of the tests of reports."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP takes seconds to compile; without it the map is a t-SNE."""
    monkeypatch.setitem(sys.modules, "umap", None)
