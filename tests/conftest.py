"""Fixtures of all tests: gloo processes that live for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.helpers.workers import Workers


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers(2, tmp_path_factory.mktemp("pair"))
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers(3, tmp_path_factory.mktemp("trio"))
    yield workers
    workers.close()
