"""Files of a test are not flushed to the disk."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def unflushed() -> Iterator[None]:
    """Without waiting for the disk: a killed process, unlike the power, takes nothing that was written with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
