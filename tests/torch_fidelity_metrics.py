"""Reference metrics of torch-fidelity for tests, loaded module by module so that torchvision is not needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def metric_module(name: str) -> Any:
    """A module of torch-fidelity such as ``metric_fid``; skips the test if it is not installed."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torch-fidelity is not installed; pip install --no-deps torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    # Modules for reading pictures, which the formulas import but do not use.
    utils = types.ModuleType("torch_fidelity.utils")
    utils.__getattr__ = lambda _name: None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        patch.setitem(sys.modules, "torch_fidelity.utils", utils)
        return importlib.import_module(f"torch_fidelity.{name}")
