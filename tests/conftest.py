"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is cached away from the user's own cache folder, for child processes, too."""
    with pytest.MonkeyPatch.context() as patch:
        if "DCTRANSFORMER_CACHE" not in os.environ:
            patch.setenv("DCTRANSFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
