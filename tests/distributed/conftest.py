"""The pool of ranks, started on first use and replaced if a test breaks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool

_current: list[Pool] = []


@pytest.fixture
def pool() -> Iterator[Pool]:
    if not _current or not _current[0].alive:
        _current[:] = [Pool()]
    return _current[0]


@pytest.fixture(scope="session", autouse=True)
def _end_of_session() -> Iterator[None]:
    yield
    for pool in _current:
        pool.close()
