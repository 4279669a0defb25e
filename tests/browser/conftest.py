"""One browser for all pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .chromium import Page, chromium, find_chromium


@pytest.fixture(scope="package")
def browser() -> Iterator[Page]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with chromium(executable) as page:
        yield page
