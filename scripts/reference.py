"""Build the API reference from the docstrings: one page a module, with search.

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
    """Names of all modules; nothing private and no command line."""
    names = [m.name for m in pkgutil.walk_packages(dctransformer.__path__, "dctransformer.")]
    return ["dctransformer", *(n for n in names if "._" not in n and not n.endswith("__main__"))]


def build(out: Path) -> None:
    """Write HTML files.

    Args:
        out: folder, made if needed.
    """
    for module in map(importlib.import_module, modules()):
        for name in getattr(module, "__all__", ()):  # pdoc sees names that are imported late only once they are used
            getattr(module, name)
    pdoc.render.configure(docformat="google", footer_text=f"dctransformer {dctransformer.__version__}")
    with warnings.catch_warnings():
        # pdoc finds some modules by itself, but not those of a package that names its public things (``__all__``).
        warnings.filterwarnings("ignore", message="The module specification")
        pdoc.pdoc(*modules(), output_directory=out)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    build(folder)
    print(f"the reference: {folder / 'index.html'}")
