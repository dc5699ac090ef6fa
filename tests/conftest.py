"""Settings that apply to all tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from tqdm import tqdm

# The lock of progress bars is shared with forked processes by default; a test that kills one could block all others.
tqdm.set_lock(threading.RLock())


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary cache folder, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        if "DCTRANSFORMER_CACHE" not in os.environ:
            patch.setenv("DCTRANSFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
