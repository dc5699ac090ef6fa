"""Build the API reference from the docstrings: one page per module, with search.

Example: python scripts/reference.py build/docs
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import dctransformer


def modules() -> list[str]:
    """Names of all public modules, without the command line."""
    names = [m.name for m in pkgutil.walk_packages(dctransformer.__path__, "dctransformer.")]
    return ["dctransformer", *(n for n in names if "._" not in n and not n.endswith("__main__"))]


def build(out: Path) -> None:
    """Write the HTML files of the reference.

    Args:
        out: output folder, created if needed.
    """
    for module in map(importlib.import_module, modules()):
        for name in getattr(module, "__all__", ()):  # pdoc lists lazily imported names only after they are accessed
            getattr(module, name)
    pdoc.render.configure(docformat="google", footer_text=f"dctransformer {dctransformer.__version__}")
    with warnings.catch_warnings():
        # pdoc finds submodules on its own, except in packages that define ``__all__``.
        warnings.filterwarnings("ignore", message="The module specification")
        pdoc.pdoc(*modules(), output_directory=out)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    build(folder)
    print(f"API reference: {folder / 'index.html'}")
