"""DCTransformer: generating images with sparse representations."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dctransformer.codec import Codec, DCTImage, read_jpeg, write_jpeg
    from dctransformer.hub.model import DCTransformer

__version__ = "0.1.0"

__all__ = ["Codec", "DCTImage", "DCTransformer", "__version__", "read_jpeg", "write_jpeg"]


def lazy_names(package: str, modules: dict[str, list[str]]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` that imports names at their first use, so that the package costs no time.

    Args:
        package: its ``__name__``.
        modules: the modules, relative to the package, and the names that each defines.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


__getattr__ = lazy_names(
    __name__, {"codec": ["Codec", "DCTImage", "read_jpeg", "write_jpeg"], "hub.model": ["DCTransformer"]}
)
